"""What the README and `examples/` show runs as it stands there: a few photos, random weights, a few steps."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tiny import WORDS, tiny_model, tiny_processor
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer, Trainer, default_data_collator

from hfvlm import AlignModel, BlipForConditionalGeneration, ClipModel, MocoForPreTraining, pipeline
from hfvlm.conversion.efficientnet import RULES
from hfvlm.conversion.rules import apply, invert
from hfvlm.data.captions import read_captions
from hfvlm.data.questions import read_questions
from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.encoders.efficientnet import EfficientNetTower
from hfvlm.evaluation.tasks import evaluate_vqa


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PHOTOS = {"train": 8, "val": 4, "test": 4}
COLOURS = {"dog": "brown", "child": "blue"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Photos of a brown dog or a blue child, five captions and two questions each, as the examples want them."""
    folder = tmp_path_factory.mktemp("photos")
    rows, questions = [], []
    for split, number in PHOTOS.items():
        for i in range(number):
            thing, colour = list(COLOURS.items())[i % 2]
            name = f"{split}{i}.png"
            Image.effect_noise((40, 36 + i), 60).convert("RGB").save(folder / name)
            captions = [
                f"a {colour} {thing} {verb} on the grass ." for verb in ("runs", "sits", "stands", "jumps", "is")
            ]
            rows.append({"image": name, "captions": captions, "split": split})
            asked = {f"what color is the {thing}": {"answer": colour}, "what is it": {"answers": [thing] * 4}}
            questions += [{"image": name, "question": q, **answer, "split": split} for q, answer in asked.items()]
    (folder / "vqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """The options that name random weights: EfficientNet-Lite0 and a narrow MiniLM, in their own formats."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    tower = EfficientNetTower(EfficientNetTowerConfig(lite=True))
    torch.save(apply(invert(RULES), tower.state_dict()).tensors, folder / "lite0.pth")
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "child", *WORDS])}
    )
    tokenizer.save_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 6}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **width)
    save_file(BertModel(config).state_dict(), folder / "model.safetensors")
    config.to_json_file(folder / "config.json")
    return ["--efficientnet", str(folder / "lite0.pth"), "--minilm", str(folder)]


def minilm(weights: list[str]) -> list[str]:
    """Of the options of `weights` that of MiniLM."""
    return weights[weights.index("--minilm") :][:2]


def short_recipe(name: str, folder: Path, **sections: dict[str, Any]) -> Path:
    """A recipe of the examples with some of its values replaced; those that it names must be in it."""
    recipe = yaml.safe_load((EXAMPLES / "recipes" / f"{name}.yaml").read_text())

    def replace(section: dict[str, Any], values: dict[str, Any]) -> None:
        for key, value in values.items():
            assert key in section, f"{name}.yaml has no {key}"
            if isinstance(value, dict):
                replace(section[key], value)
            else:
                section[key] = value

    replace(recipe, sections)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example as `python examples/NAME.py OPTIONS` would, in this process; gives what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(name: str, *options: Any) -> str:
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def captioner_example(monkeypatch):
    """The module that the other trainings share."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train_captioner")


@pytest.fixture
def blip_example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train_blip")


def result_of(output: str) -> dict[str, float]:
    return json.loads(re.search(r"^(?:test: )?(\{.*\})$", output.splitlines()[-1])[1])


STAGE = {"epochs": 1, "batch_size": 4}


def test_the_readme_trains_two_towers(data, tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Contrast at any batch size\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    for ours, tiny in (('"vit_b_32"', '"tiny"'), ("=8192", "=4"), ("_size=64", "_size=2"), ("_size=1024", "_size=3")):
        assert ours in code
        code = code.replace(ours, tiny)
    (tmp_path / "photos").symlink_to(data)
    tiny_processor("hfvlm_clip").save_pretrained(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert isinstance(names["model"], ClipModel)
    assert names["model"].config.micro_batch_size == 2


@pytest.mark.parametrize(("architecture", "model_class"), [("clip", ClipModel), ("align", AlignModel)])
def test_two_towers(architecture, model_class, data, weights, example, tmp_path):
    stages = {"features": {**STAGE, "views": 2}}
    if architecture == "align":
        stages["end_to_end"] = {**STAGE, "micro_batch_size": 2}
    recipe = short_recipe(f"flickr8k_{architecture}", tmp_path, model={"image_size": 32}, stages=stages)
    options = ["--data", data, *weights, "--recipe", recipe, "--output", tmp_path / "out"]
    result = result_of(example("train_two_towers", *options))
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert type(model) is model_class
    assert model.config.micro_batch_size is None
    said = result_of(example("evaluate_retrieval", "--data", data, "--model", tmp_path / "out" / "model"))
    assert said == {**result, "photos": PHOTOS["test"]}
    again = result_of(example("train_two_towers", *options))
    assert again == result, "run again, a finished training has nothing left to do"
    for name, value in AutoModel.from_pretrained(tmp_path / "out" / "model").state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_captioner(data, weights, example, tmp_path):
    stages = {name: dict(STAGE) for name in ("features", "end_to_end", "reward", "reward_end_to_end")}
    stages["features"]["views"] = stages["reward"]["views"] = 2
    stages["reward"].update(epochs=2, stop_after=1, samples=2)
    stages["reward_end_to_end"]["samples"] = 2
    model = {"image_size": 32, "memory_width": 16}
    recipe = short_recipe("flickr8k_captioner", tmp_path, model=model, stages=stages, vocabulary={"min_count": 1})
    options = ["--data", data, *weights, "--recipe", recipe, "--output", tmp_path / "out"]
    example("train_captioner", *options)
    captioner = BlipForConditionalGeneration.from_pretrained(tmp_path / "out" / "model")
    assert captioner.generation_config.num_beams == 3
    said = example("evaluate_captioner", "--data", data, "--model", tmp_path / "out" / "model", "--beams", 1)
    scores = json.loads(said.splitlines()[0])
    assert list(scores)[:6] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    assert scores["photos"] == PHOTOS["test"]
    example("pack_model", "--model", tmp_path / "out" / "model", "--output", tmp_path / "packed")
    example("caption_sheet", data / "test0.png", "--model", tmp_path / "packed", "--output", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").height > 300  # the photo and a caption below

    shorter = short_recipe(
        "flickr8k_blip",
        tmp_path,
        model={"projection_dim": 16, "queue_size": 16},
        photos={"size": 32, "texts": 2},
        stages={"objectives": {**STAGE, "save_every": 1}, "reward": {**STAGE, "save_every": 1, "samples": 2}},
        vocabulary={"min_count": 1},
    )
    blip = ["--data", data, "--captioner", tmp_path / "out" / "model", *minilm(weights), "--recipe", shorter]
    example("train_blip", *blip, "--output", tmp_path / "blip")
    trained = (tmp_path / "blip" / "model" / "model.safetensors").read_bytes()
    example("train_blip", *blip, "--output", tmp_path / "blip")  # has nothing left to do
    assert (tmp_path / "blip" / "model" / "model.safetensors").read_bytes() == trained
    example("evaluate_retrieval", "--data", data, "--model", tmp_path / "blip" / "model", "--rerank", 2)
    written = BlipForConditionalGeneration.from_pretrained(tmp_path / "blip" / "model")
    assert written.generation_config.num_beams == 3

    stages_of_answers = {"answers": {**STAGE, "batch_size": 2}}
    shorter = short_recipe("daquar_vqa", tmp_path, held_out=0.25, ranking=3, stages=stages_of_answers)
    answerer = ["--data", data, "--start", tmp_path / "blip" / "model", *minilm(weights), "--recipe", shorter]
    result = result_of(example("train_answerer", *answerer, "--output", tmp_path / "answerer"))
    assert set(result) == {"written", "ranked", "commonest", "commonest of the kind", "questions", "split"}
    assert result["questions"] == 2 * PHOTOS["test"] and result["commonest of the kind"] == 0.5
    pipe = pipeline("visual-question-answering", str(tmp_path / "answerer" / "model"))
    scores = evaluate_vqa(pipe, read_questions(data / "vqa.jsonl", "test"))
    assert round(scores["vqa_accuracy"], 4) == result["written"], "the model that is saved is the one that was scored"
    assert result_of(example("train_answerer", *answerer, "--output", tmp_path / "answerer")) == result
    options_of_blind = ["--output", tmp_path / "blind", "--blind", "--split", "held-out"]
    assert result_of(example("train_answerer", *answerer, *options_of_blind))["questions"] == 4

    example("train_captioner", *options)  # has nothing left to do, also where a stage stopped early
    again = BlipForConditionalGeneration.from_pretrained(tmp_path / "out" / "model").state_dict()
    for name, value in captioner.state_dict().items():
        assert torch.equal(again[name], value), name
    steps = [path.name for path in (tmp_path / "out" / "reward").glob("checkpoint-*")]
    assert steps == [f"checkpoint-{PHOTOS['train'] // STAGE['batch_size']}"]

    stages["features"]["views"] = 1
    short_recipe("flickr8k_captioner", tmp_path, model=model, stages=stages, vocabulary={"min_count": 1})
    with pytest.raises(ValueError, match=r"train_maps\.pt does not hold this run's feature maps, .* other views: del"):
        example("train_captioner", *options)


def test_bootstrap(data, weights, example, tmp_path):
    model = {"image_size": 32, "memory_width": 16}
    recipe = short_recipe("flickr8k_captioner", tmp_path, model=model, vocabulary={"min_count": 1})
    sizes = ["--photos", 6, "--test-photos", 3, "--human", 0.34, "--threshold", 0]
    sizes += ["--epochs", 1, "--filter-epochs", 1, "--tuning-epochs", 1, "--filter-tuning-epochs", 1]
    options = ["--data", data, *weights, "--recipe", recipe, "--output", tmp_path / "out", *sizes]
    result = result_of(example("bootstrap_flickr8k", *options))
    assert (result["images"], result["web"], result["web_kept"], result["synthetic"]) == (4, 20, 20, 4)
    assert result["recall"] == 1.0
    assert result["precision"] == result["right before"] >= 0.6
    assert set(result["CIDEr"]) == {"noisy", "captioner", "bootstrapped"}
    assert result_of(example("bootstrap_flickr8k", *options)) == result, "run again, it has nothing left to do"


def test_feature_maps_are_those_of_the_images_and_the_tower(captioner_example, tmp_path, data):
    rows = read_captions(data / "captions.jsonl", "train")
    processor = tiny_processor("hfvlm_align")
    cache_maps, path = captioner_example.cache_maps, tmp_path / "maps.pt"
    tower = tiny_model("hfvlm_align", "AutoModel").vision_model
    maps = cache_maps(tower, processor, rows, 2, path)
    assert maps.shape[:2] == (2, len(rows))
    assert torch.equal(cache_maps(tower, processor, rows, 2, path), maps)
    assert [file.name for file in tmp_path.iterdir()] == ["maps.pt"]
    other = tiny_model("hfvlm_align", "AutoModel", seed=1).vision_model
    with pytest.raises(ValueError, match="maps.pt does not .* it has other tower: delete it"):
        cache_maps(other, processor, rows, 2, path)
    with pytest.raises(ValueError, match="other images: delete it"):
        cache_maps(tower, processor, rows[::-1], 2, path)
    torch.save(maps, path)
    with pytest.raises(ValueError, match="maps.pt does not hold this run's feature maps"):
        cache_maps(tower, processor, rows, 2, path)


def test_views_are_the_photo_whatever_the_precision(blip_example):
    """Without a crop or a change of colours a view is the whole photo, or its mirror image."""
    processor = tiny_processor("hfvlm_blip").image_processor
    views = blip_example.Views(processor, min_side=1.0, jitter=0.0)
    photos = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8)
    whole = views(photos, random=False)
    assert whole.shape == (6, 3, processor.size["height"], processor.size["width"])
    with torch.autocast("cpu", torch.bfloat16):
        found = views(photos, random=True)
    for view, photo in zip(found, whole):
        inside = (slice(None), slice(4, -4), slice(4, -4))  # at the edge the one repeats pixels, the other mirrors
        least = min((view - other)[inside].abs().max() for other in (photo, photo.flip(-1)))
        assert least < 1e-4
    other = blip_example.Views(processor, min_side=0.5, jitter=0.5)
    assert not torch.allclose(other(photos, random=True), whole, atol=0.5)


def test_a_captioner_of_a_model_is_the_model(blip_example):
    model = tiny_model("hfvlm_blip", "AutoModelForPreTraining")
    captioner = blip_example.captioner_of(model)
    names = dict(captioner.named_parameters(remove_duplicate=False))
    assert names and all(weights is model.get_parameter(name) for name, weights in names.items())
    pixels, ids = torch.randn(1, 3, 32, 32), torch.tensor([[captioner.config.text_config.bos_token_id, 9, 10]])
    before = captioner.eval()(pixels, ids).logits
    with torch.no_grad():
        model.get_parameter("text_model.layers.0.causal_attention.qkv.weight").mul_(2)
    assert not torch.allclose(captioner(pixels, ids).logits, before)


def test_own_captions_are_of_these_photos_and_this_captioner(blip_example, tmp_path, data):
    rows = read_captions(data / "captions.jsonl", "train")
    processor, path = tiny_processor("hfvlm_blip"), tmp_path / "own.json"
    photos, views = blip_example.load_photos(rows, 16), blip_example.Views(processor.image_processor)
    own = partial(blip_example.own_captions, processor=processor, views=views, photos=photos, path=path)
    captioner = tiny_model("hfvlm_blip", "AutoModelForImageTextToText")
    captions = own(captioner, rows=rows)
    assert len(captions) == len(rows) and own(captioner, rows=rows) == captions
    for changed in (
        {"captioner": captioner, "rows": rows[::-1]},
        {"captioner": tiny_model("hfvlm_blip", "AutoModelForImageTextToText", seed=1), "rows": rows},
    ):
        with pytest.raises(ValueError, match="captions of other photos or of another captioner: delete it"):
            own(**changed)


def test_a_sample_needs_another_as_its_baseline(captioner_example):
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        sys.modules["self_critical"].check_samples(1)


def test_a_stage_that_stops_early_has_the_learning_rates_of_the_whole(captioner_example, tmp_path):
    """Four epochs of five steps, and two of them."""

    class Line(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": super().forward(x).square().mean()}

    def rates(name: str, **changes: int) -> list[float]:
        stage = {"epochs": 4, "batch_size": 2, "learning_rate": 1.0, "weight_decay": 0.0, "warmup_ratio": 0.1}
        seen = []

        class Recorded(Trainer):
            def training_step(self, *args, **kwargs):
                seen.append(self.optimizer.param_groups[0]["lr"])
                return super().training_step(*args, **kwargs)

        rows = [{"x": torch.ones(1)} for _ in range(10)]
        collator, output = default_data_collator, tmp_path / name
        captioner_example.train(Line(), rows, None, collator, {**stage, **changes}, output, Recorded)
        return seen

    whole = rates("whole")
    assert len(whole) == 20
    assert rates("half", stop_after=2) == pytest.approx(whole[:10])


def test_moco(data, example, tmp_path):
    tower = {"depths": [1, 1, 1, 1], "width": 8, "image_size": 32}
    recipe = short_recipe(
        "flickr8k_moco",
        tmp_path,
        model={"vision_config": tower, "projection_dim": 8, "queue_size": 16},
        training={"epochs": 2, "batch_size": 4, "warmup_steps": 1},
    )
    options = ["--data", data, "--recipe", recipe, "--output", tmp_path / "out"]
    result = result_of(example("train_moco", *options))
    assert result["photos"] == PHOTOS
    assert result["most frequent class"] == 0.5
    assert json.loads((tmp_path / "out" / "probe.json").read_text()) == result
    model = MocoForPreTraining.from_pretrained(tmp_path / "out" / "model")
    assert model.config.vision_config.width == 8
    assert result_of(example("train_moco", *options)) == result


def test_they_find_each_other_in_a_clean_interpreter(tmp_path):
    """From any folder, as the others do that import from one another."""
    command = [sys.executable, str(EXAMPLES / "train_two_towers.py"), "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "--efficientnet" in finished.stdout
