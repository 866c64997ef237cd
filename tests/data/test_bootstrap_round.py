"""A round of CapFilt: what is kept and how it is judged, the same rows however the work is cut, nothing foreign."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from tiny import tiny_model, tiny_processor

from hfvlm.data import bootstrap_ray
from hfvlm.data.bootstrap import CapFilt, Recipe, bootstrap
from hfvlm.data.shards import Counts, ShardError, ShardFolder
from hfvlm.data.web import open_rows
from hfvlm.images import ImageError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven images, with one text or two; the sixth is broken."""
    folder = tmp_path_factory.mktemp("web")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "captions": ["a dog on grass", "two red birds"][: 1 + i % 2]})
    (folder / "5.png").write_text("no image")
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "web.jsonl"


@pytest.fixture(scope="module")
def models():
    captioner = tiny_model("blip", "AutoModelForImageTextToText"), tiny_processor("blip")
    return *captioner, tiny_model("blip", "AutoModelForImageTextRetrieval", seed=1), tiny_processor("blip")


RECIPE = {"threshold": 0.0, "shard_size": 3, "batch_size": 2, "max_length": 8}


def run(source, folder, models, shards=None, on_error=None, **recipe) -> list[Counts]:
    rows, capfilt = open_rows(source), CapFilt(*models, Recipe(**{**RECIPE, **recipe}))
    shards_folder = ShardFolder(folder, capfilt.settings(rows), rows.in_bytes)
    return [counts for _, counts in bootstrap(rows, shards_folder, capfilt, shards, on_error)]


def rows_in(folder) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def whole(source, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(source, folder, models)
    return rows_in(folder)


def test_texts_of_the_web_and_of_the_captioner_with_their_probabilities(source, models, whole):
    rows = open_rows(source).read(0, 11)
    texts = [(row.number, text) for row in rows if row.number != 5 for text in row.texts]
    assert [(row["row"], row["text"]) for row in whole if row["source"] == "web"] == texts
    assert sorted(row["row"] for row in whole if row["source"] == "synthetic") == [0, 1, 2, 3, 4, *range(6, 11)]
    assert len({row["text"] for row in whole if row["source"] == "synthetic"}) > 5
    *_, judge, processor = models
    for row in whole[::5]:
        batch = processor(images=Image.open(row["image"]))
        batch.update(processor(text=row["text"], task="encode"))
        with torch.no_grad():
            logits = judge(**batch, return_loss=False).itm_logits
        assert row["score"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)


def test_what_matches_is_kept(source, models, whole, tmp_path):
    threshold = float(np.median([row["score"] for row in whole]))
    total = sum(run(source, tmp_path, models, threshold=threshold), Counts())
    kept = [row for row in whole if row["score"] >= threshold]
    assert rows_in(tmp_path) == kept
    assert 0 < len(kept) < len(whole)
    assert total.web_kept + total.synthetic_kept == len(kept)
    assert (total.images, total.skipped, total.web, total.synthetic) == (10, 1, 14, 10)


def test_an_image_is_encoded_once_for_all_its_texts(source, models, tmp_path, monkeypatch):
    judge, seen = models[2], []
    encode = judge.get_image_features
    monkeypatch.setattr(judge, "get_image_features", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    [counts, *_] = run(source, tmp_path, models, shards=[0], captions=3)
    assert sum(seen) == counts.images == 3
    assert (counts.web, counts.synthetic) == (4, 9)


@pytest.mark.parametrize("interrupted", ["between", "within"])
def test_resumed_it_makes_the_same_rows(interrupted, source, models, whole, tmp_path, monkeypatch):
    if interrupted == "between":
        run(source, tmp_path, models, shards=[2, 0])
    else:
        written = []

        def die(self, shard, kept, write=ShardFolder.write):
            written.append(shard)
            if len(written) == 2:
                raise KeyboardInterrupt
            write(self, shard, kept)

        with monkeypatch.context() as patch:
            patch.setattr(ShardFolder, "write", die)
            with pytest.raises(KeyboardInterrupt):
                run(source, tmp_path, models)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert 0 < len(before) < 4
    torch.manual_seed(3)  # whatever the process drew before
    counts = run(source, tmp_path, models)
    assert rows_in(tmp_path) == whole
    assert [count.images for count in counts] == [3, 2, 3, 2]
    for name, time in before.items():
        assert (tmp_path / name).stat().st_mtime_ns == time, "a shard that was there was made again"


def test_the_callers_random_numbers_are_left_alone(source, models, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(source, tmp_path, models, shards=[0])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("change", [{"seed": 1}, {"round": 2}])
def test_another_seed_or_round_draws_other_texts(change, source, models, whole, tmp_path):
    run(source, tmp_path, models, **change)
    ours = rows_in(tmp_path)
    assert [row for row in ours if row["source"] == "web"] == [row for row in whole if row["source"] == "web"]
    assert ours != whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"threshold": 0.4, "top_p": 0.5},
            "shard-00000.parquet: was made with another threshold, another top_p: choose",
        ),
        ({"captioner": 2}, "with another captioner: choose another --output, or delete it"),
        ({"judge": 2}, "with another filter: choose"),
        ({"source": "other"}, "with another input: choose"),
        ({"prompt": "a photo of"}, "with another prompt: choose"),
        ({"vocabulary": "captioner"}, "with another captioner vocabulary: choose"),
        ({"vocabulary": "filter"}, "with another filter vocabulary: choose"),
        ({"generation": {"repetition_penalty": 1.5}}, "with another generation config: choose"),
    ],
)
def test_what_others_made_is_refused(change, message, source, models, tmp_path):
    change = {**change}
    run(source, tmp_path, models, shards=[0])
    captioner, first, judge, second = models
    if "captioner" in change:
        captioner = tiny_model("blip", "AutoModelForImageTextToText", seed=change.pop("captioner"))
    if "judge" in change:
        judge = tiny_model("blip", "AutoModelForImageTextRetrieval", seed=change.pop("judge"))
    if change.pop("source", None):
        other = source.with_name("other.jsonl")
        other.write_text(source.read_text().replace("grass", "sand"))
        source = other
    if "prompt" in change:
        first = tiny_processor("blip", prompt=change.pop("prompt"))
    if "vocabulary" in change:
        other = tiny_processor("blip")
        other.tokenizer.add_tokens(["zebra"])
        first, second = (other, second) if change.pop("vocabulary") == "captioner" else (first, other)
    if "generation" in change:
        captioner = tiny_model("blip", "AutoModelForImageTextToText")
        captioner.generation_config.update(**change.pop("generation"))
    with pytest.raises(ShardError, match=message):
        run(source, tmp_path, (captioner, first, judge, second), **change)


def test_foreign_parquet_files_are_refused(source, models, tmp_path):
    parquet.write_table(datasets.Dataset.from_dict({"a": [1]}).data.table, tmp_path / "mine.parquet")
    with pytest.raises(ShardError, match="mine.parquet: is not a shard of a bootstrap: choose another --output"):
        run(source, tmp_path, models)
    (tmp_path / "mine.parquet").write_text("no parquet")
    with pytest.raises(ShardError, match="mine.parquet: is not a shard"):
        run(source, tmp_path, models)
    table = parquet.read_table(next(iter_shards(source, models, tmp_path / "old")))
    about = json.loads(table.schema.metadata[b"hfvlm"])
    old = table.replace_schema_metadata({"hfvlm": json.dumps({**about, "format": "hfvlm-bootstrap-0"})})
    parquet.write_table(old, tmp_path / "mine.parquet")
    with pytest.raises(ShardError, match="of another version, hfvlm-bootstrap-0"):
        run(source, tmp_path, models)


def iter_shards(source, models, folder):
    run(source, folder, models, shards=[0])
    return folder.glob("*.parquet")


def test_broken_images_are_told_and_left_out(source, models, tmp_path):
    told = []
    counts = run(source, tmp_path, models, on_error=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"row 5: {source.parent / '5.png'}: is not an image")
    assert [count.skipped for count in counts] == [0, 1, 0, 0]
    assert 5 not in {row["row"] for row in rows_in(tmp_path)}
    source.with_name("broken.jsonl").write_text('{"image": "5.png", "text": "a dog"}\n{"image": "6.png", "text": "a"}')
    [first, second] = run(source.with_name("broken.jsonl"), tmp_path / "broken", models, shard_size=1)
    assert (first, second.images) == (Counts(skipped=1), 1)
    assert len(datasets.Dataset.from_parquet(str(tmp_path / "broken/*.parquet"), cache_dir=tmp_path / "cache")) == 2


def test_the_shards_load_with_datasets(source, models, whole, tmp_path):
    run(source, tmp_path / "out", models)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["image", "text", "source", "score", "row"]
    assert loaded.to_list() == whole


def test_images_in_the_input_stay_in_the_shards(source, models, whole, tmp_path):
    names = [str(source.parent / f"{i}.png") for i in range(4)]
    table = datasets.Dataset.from_dict({"image": names, "captions": [["a dog on grass"]] * 4})
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out", models)
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].tobytes() == Image.open(names[0]).tobytes()
    assert loaded[0]["score"] == pytest.approx(whole[0]["score"], abs=1e-5)
    again = open_rows(tmp_path / "out")  # what one round kept can be an input
    assert again.in_bytes and again.read(0, 1)[0].texts == ("a dog on grass",)


def test_a_prompt_is_cut_off_and_sizes_may_differ(source, models, tmp_path):
    captioner, _, judge, second = models
    first = tiny_processor("blip", prompt="a photo of")
    second = tiny_processor("blip")
    second.image_processor.do_normalize = False
    run(source, tmp_path, (captioner, first, judge, second), shards=[0])
    texts = [row["text"] for row in rows_in(tmp_path) if row["source"] == "synthetic"]
    assert texts and not any(text.startswith("a photo of") for text in texts)
    row = rows_in(tmp_path)[0]
    batch = {**second(images=Image.open(row["image"])), **second(text=row["text"], task="encode")}
    with torch.no_grad():
        logits = judge(**batch, return_loss=False).itm_logits
    assert row["score"] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)


@pytest.mark.parametrize("failing", [{1}, {0, 1}], ids=["one of a batch", "a whole batch"])
def test_an_image_that_fails_when_the_filter_opens_it_is_left_out(failing, source, models, tmp_path, monkeypatch):
    captioner, first, judge, second = models
    second = tiny_processor("blip")
    second.image_processor.do_normalize = False
    capfilt, rows = CapFilt(captioner, first, judge, second, Recipe(**RECIPE)), open_rows(source).read(0, 3)
    load = capfilt.judge_loader._load

    def fail(image, out):
        if any(image == rows[number].image for number in failing):
            raise ImageError(f"{image}: gone")
        return load(image, out)

    monkeypatch.setattr(capfilt.judge_loader, "_load", fail)
    told = []
    kept = capfilt(rows, 0, told.append)
    assert set(kept.rows) == {0, 1, 2} - failing
    assert (kept.counts.images, kept.counts.skipped) == (3 - len(failing), len(failing))
    assert [line.partition(":")[0] for line in told] == [f"row {number}" for number in sorted(failing)]
    for place, (number, text) in enumerate(zip(kept.rows, kept.texts, strict=True)):
        batch = {**second(images=Image.open(rows[number].image)), **second(text=text, task="encode")}
        with torch.no_grad():
            logits = judge(**batch, return_loss=False).itm_logits
        assert kept.scores[place] == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)


def test_albef_is_a_filter_too(source, models, tmp_path):
    judge, processor = tiny_model("albef", "AutoModelForImageTextRetrieval"), tiny_processor("albef")
    [counts] = run(source, tmp_path, (*models[:2], judge, processor), shards=[0])
    assert counts.web_kept == counts.web == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold must be a probability, 0 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must be a probability"),
        ({"threshold": -0.1}, "threshold must be a probability"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1"),
        ({"min_length": 9, "max_length": 8}, r"max_length \(8\) must be at least 1 and min_length \(9\)"),
        ({"max_length": 0, "min_length": 0}, r"max_length \(0\) must be at least 1"),
        ({"seed": -1}, "seed and min_length must not be negative"),
        ({"captions": 0}, "captions must be at least 1"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
    ],
)
def test_bad_recipes(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_models_of_another_kind(models):
    captioner, first, judge, second = models
    with pytest.raises(TypeError, match="captioner: BlipForImageTextRetrieval writes no texts: use a captioner"):
        CapFilt(judge, second, judge, second, Recipe())
    with pytest.raises(TypeError, match="filter: BlipForConditionalGeneration does not judge pairs"):
        CapFilt(captioner, first, captioner, first, Recipe())


def test_scores_that_are_no_numbers_drop_nothing_in_silence(source, models, tmp_path, monkeypatch):
    monkeypatch.setattr(models[2], "match", lambda *args, **kwargs: torch.full((4, 2), torch.nan))
    with pytest.raises(
        ValueError, match="filter: BlipForImageTextRetrieval gives NaN or infinite scores in .*float32"
    ):
        run(source, tmp_path, models)
    assert not list(tmp_path.iterdir())


class FakeRay(ModuleType):
    """As much of Ray Data as a round uses, in this process: the actors are made once, and each takes a row."""

    def __init__(self):
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.data, self.ActorPoolStrategy = self, dict

    def from_items(self, items, override_num_blocks):
        assert override_num_blocks == len(items)
        self.items = items
        return self

    def map(self, worker, compute, num_gpus):
        self.asked, self.worker = (compute, num_gpus), worker()
        return self

    def iter_rows(self):
        return map(self.worker, reversed(self.items))


def test_ray_makes_the_same_rows(source, models, whole, tmp_path, monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray)

    def load():
        rows, capfilt = open_rows(source), CapFilt(*models, Recipe(**RECIPE))
        return rows, ShardFolder(tmp_path, capfilt.settings(rows)), capfilt

    told = []
    made = dict(bootstrap_ray.bootstrap_with_ray(load, range(4), workers=2, gpus=0.5, on_error=told.append))
    assert ray.asked == ({"size": 2}, 0.5)
    assert rows_in(tmp_path) == whole
    assert [made[shard].images for shard in range(4)] == [3, 2, 3, 2]
    assert len(told) == 1 and told[0].startswith("row 5: ")


def test_ray_is_missed_by_name(monkeypatch):
    monkeypatch.setattr(bootstrap_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs Ray Data: `pip install 'ray\[data\]'`, or use --engine local"):
        list(bootstrap_ray.bootstrap_with_ray(lambda: None, [0]))
