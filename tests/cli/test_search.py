"""`hfvlm search`: what it prints, what it keeps, what it refuses."""

import json

import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from two_towers import save_stock_clip, stock_clip, stock_processor

from hfvlm.data.index import ImageIndex
from hfvlm.data.indexing import INDEX_PATH
from hfvlm.embedder import Embedder


NAMES = ("a.png", "b.JPG", "more/c.webp")


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    """Folder of a tiny two-tower model."""
    return save_stock_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def expected(photos) -> list[tuple[float, str]]:
    """Score and path of each photo for "a dog", best first."""
    embed = Embedder(stock_clip(), stock_processor())
    paths = [str(photos / name) for name in NAMES]
    scores = (embed.texts(["a dog"]) @ embed.images(paths).t())[0].tolist()
    return sorted(zip(scores, paths), reverse=True)


def test_prints_scores_and_paths(run, clip, photos, expected):
    for _ in range(2):  # the second time from the index
        result = run("search", "a dog", "--in", photos, "--model", clip, "--dtype", "fp32")
        assert (result.code, result.err) == (0, "")
        lines = [line.split(maxsplit=1) for line in result.out.splitlines()]
        assert [path for _, path in lines] == [path for _, path in expected]
        assert [float(score) for score, _ in lines] == pytest.approx([score for score, _ in expected], abs=2e-3)
    assert (photos / INDEX_PATH).is_file()


def test_json_and_top_k(run, clip, photos, expected):
    result = run("search", "a dog", "--in", photos, "--model", clip, "--dtype", "fp32", "--top-k", 2, "--json")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows == [
        {"rank": rank, "score": pytest.approx(score, abs=2e-3), "image": path}
        for rank, (score, path) in enumerate(expected[:2], 1)
    ]


def test_an_image_as_the_query(run, clip, photos):
    options = ("--model", clip, "--top-k", 1, "--dtype", "fp32")
    result = run("search", "--image", photos / "b.JPG", "--in", photos, *options)
    assert result.out == f" 1.000  {photos / 'b.JPG'}\n"


def test_sheet(run, clip, photos, tmp_path):
    sheet = tmp_path / "found.png"
    result = run("search", "a dog", "--in", photos, "--model", clip, "--sheet", sheet)
    assert result.code == 0
    assert Image.open(sheet).width > 700  # three images side by side


def test_broken_images_are_named_and_the_rest_found(run, clip, photos, expected):
    (photos / "broken.png").write_text("no image")
    result = run("search", "a dog", "--in", photos, "--model", clip, "--dtype", "fp32")
    assert result.code == 1
    assert result.err == f"error: {photos / 'broken.png'}: is not an image that can be read\n"
    assert [line.split(maxsplit=1)[1] for line in result.out.splitlines()] == [path for _, path in expected]


def test_an_index_of_another_model(run, clip, photos, tmp_path):
    run("search", "a dog", "--in", photos, "--model", clip)
    other = save_stock_clip(tmp_path / "other", seed=1)
    result = run("search", "a dog", "--in", photos, "--model", other)
    assert (result.code, result.out) == (1, "")
    assert "was made by another model" in result.err
    assert clip in result.err
    assert "--rebuild" in result.err
    assert result.err.count("\n") == 1
    elsewhere = tmp_path / "elsewhere" / "index.safetensors"
    assert run("search", "a dog", "--in", photos, "--model", other, "--index", elsewhere).code == 0
    assert elsewhere.is_file()
    assert run("search", "a dog", "--in", photos, "--model", clip).code == 0
    assert run("search", "a dog", "--in", photos, "--model", other, "--rebuild").code == 0
    assert run("search", "a dog", "--in", photos, "--model", clip).code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "QUERY"),
        (["a dog", "--image", "a.png"], 2, "not both"),
        ([" "], 2, "say what to look for"),
        (["--image", "gone.png"], 1, "gone.png: no such file"),
        (["a dog", "--in", "gone"], 2, "gone: no such folder"),
        (["a dog", "--sheet", "sheet.txt"], 2, "must be a .png"),
        (["a dog", "--sheet", "gone/sheet.png"], 2, "must be a .png in a folder that is there"),
        (["a dog", "--top-k", "0"], 2, "--top-k"),
        (["a dog", "--model", "/no/such/folder"], 1, "no such folder: /no/such/folder"),
        (["a dog", "--model", "./nosuch"], 1, "no such folder: ./nosuch"),
        (["a dog", "--model", __file__], 1, "is a file, not the folder of a model"),
    ],
)
def test_bad_options(run, clip, photos, arguments, code, message):
    given = {"--in": photos, "--model": clip}
    defaults = [part for name, value in given.items() if name not in arguments for part in (name, value)]
    result = run("search", *arguments, *defaults)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (photos / INDEX_PATH).exists()


def test_a_model_without_two_towers(run, model, photos):
    result = run("search", "a dog", "--in", photos, "--model", model)
    assert (result.code, result.out) == (1, "")
    assert "it holds the weights of BlipForConditionalGeneration" in result.err


def test_a_folder_without_a_processor_or_a_model(run, photos, tmp_path):
    for command in (("search", "a dog", "--in", photos), ("caption", photos)):
        stock_clip().save_pretrained(tmp_path / "half")
        result = run(*command, "--model", tmp_path / "half")
        assert (result.code, result.out) == (1, "")
        assert "half has no processor (no processor_config.json): convert or save it again" in result.err
        result = run(*command, "--model", photos)
        assert (result.code, result.out) == (1, "")
        assert "photos has no config.json: it is not the folder of a model" in result.err


def test_a_model_that_gives_nan(run, photos, tmp_path):
    model = stock_clip()
    torch.nn.init.constant_(model.visual_projection.weight, torch.nan)
    model.save_pretrained(tmp_path / "nan")
    stock_processor().save_pretrained(tmp_path / "nan")
    for command in (("search", "a dog", "--in", photos), ("classify", photos, "--labels", "a,b", "--json")):
        result = run(*command, "--model", tmp_path / "nan")
        assert (result.code, result.out) == (1, "")
        assert "NaN" in result.err
    assert not (photos / INDEX_PATH).exists()


def test_an_interrupt_says_how_to_go_on(run, clip, photos, monkeypatch):
    whole = Embedder.image_batches

    def interrupted(self, images, on_error=None):
        yield next(whole(self, images, on_error))
        raise KeyboardInterrupt

    arguments = ("search", "a dog", "--in", photos, "--model", clip, "--batch-size", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "image_batches", interrupted)
        result = run(*arguments)
    assert (result.code, result.out) == (130, "")
    assert result.err == "interrupted: 1 of 3 new images indexed; run it again to go on\n"
    assert ImageIndex.load(photos / INDEX_PATH).paths == ["a.png"]
    assert run(*arguments).code == 0


def test_an_empty_folder(run, clip, tmp_path):
    result = run("search", "a dog", "--in", tmp_path, "--model", clip)
    assert (result.code, result.err) == (1, f"error: {tmp_path}: no image in this folder\n")


@pytest.mark.parametrize("head", ["AutoModelForImageTextRetrieval", "AutoModelForPreTraining"])
@pytest.mark.parametrize("name", ["albef", "blip"])
def test_the_nearest_are_judged_again(run, photos, tmp_path, name, head):
    model, processor = tiny_model(name, head), tiny_processor(name)
    model.save_pretrained(tmp_path / "judge")
    processor.save_pretrained(tmp_path / "judge")
    arguments = ("search", "a dog", "--in", photos, "--model", tmp_path / "judge", "--dtype", "fp32")
    plain = [json.loads(line) for line in run(*arguments, "--json").out.splitlines()]
    result = run(*arguments, "--json", "--rerank", 2, "--sheet", tmp_path / "sheet.png")
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert {row["image"] for row in rows} == {row["image"] for row in plain[:2]}
    inputs = Embedder(model, processor).tokens(["a dog"])
    pixels = processor(images=[Image.open(row["image"]).convert("RGB") for row in rows])["pixel_values"]
    with torch.no_grad():
        tokens = model.get_image_features(pixels).last_hidden_state
        judged = model.match(tokens, *(inputs[key].expand(2, -1) for key in ("input_ids", "attention_mask")))[:, 1]
    similarities = {row["image"]: row["score"] for row in plain}
    for row, logit in zip(rows, judged.tolist(), strict=True):
        assert row["similarity"] == pytest.approx(similarities[row["image"]], abs=2e-3)
        added = row["similarity"] if model.rerank_adds_similarity else 0.0
        assert row["score"] == pytest.approx(logit + added, abs=1e-4)
    assert rows[0]["score"] >= rows[1]["score"]
    [line] = run(*arguments, "--rerank", 3, "--top-k", 1).out.splitlines()
    score, similarity, _ = line.split(maxsplit=2)
    assert float(score) >= rows[0]["score"] - 1e-3 and abs(float(similarity)) <= 1


def test_a_model_that_judges_nothing_cannot_rerank(run, clip, photos):
    result = run("search", "a dog", "--in", photos, "--model", clip, "--rerank", 2)
    assert (result.code, result.out) == (1, "")
    assert "rerank needs a model that judges pairs of images and texts, CLIPModel only compares them" in result.err
    assert not (photos / INDEX_PATH).exists()
    result = run("search", "--image", photos / "a.png", "--in", photos, "--model", clip, "--rerank", 2)
    assert result.code == 2 and "judges images with a text" in result.err
