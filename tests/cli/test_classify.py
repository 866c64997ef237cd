"""`hfvlm classify`: labels and probabilities, a line an image."""

import json

import pytest
from tiny import tiny_model, tiny_processor
from two_towers import save_stock_clip, stock_clip, stock_processor

from hfvlm.evaluation.zero_shot import TEMPLATES, ZeroShotClassifier


LABELS = ["dog", "red ball", "tree"]


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    """Folder of a tiny two-tower model."""
    return save_stock_clip(tmp_path_factory.mktemp("clip"))


def expected(paths: list[str], templates=TEMPLATES["photo"]) -> list[dict]:
    """What the command prints as JSON."""
    scores = ZeroShotClassifier(stock_clip(), stock_processor(), LABELS, templates).predict(paths)
    rows = [sorted(zip(LABELS, row), key=lambda item: -item[1]) for row in scores.tolist()]
    return [
        {"image": path, "scores": {label: pytest.approx(score, abs=1e-4) for label, score in row}}
        for path, row in zip(paths, rows)
    ]


@pytest.fixture
def paths(photos) -> list[str]:
    return [str(photos / name) for name in ("a.png", "b.JPG", "more/c.webp")]


@pytest.mark.parametrize(
    ("options", "templates"),
    [
        ([], TEMPLATES["photo"]),
        (["--template", "ensemble"], TEMPLATES["ensemble"]),
        (["--template", "a {}", "--template", "the {} is red"], ["a {}", "the {} is red"]),
        (["--batch-size", "1"], TEMPLATES["photo"]),
    ],
)
def test_json(run, clip, photos, paths, options, templates):
    arguments = ("--labels", "dog, red ball,tree", "--model", clip, "--dtype", "fp32", "--json")
    result = run("classify", photos, *arguments, *options)
    assert (result.code, result.err) == (0, "")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert rows == expected(paths, templates)
    assert [list(row["scores"]) for row in rows] == [list(row["scores"]) for row in expected(paths, templates)]


def test_labels_can_be_repeated(run, clip, photos, paths):
    arguments = ("--labels", "dog,red ball", "--labels", "tree", "--model", clip, "--dtype", "fp32", "--json")
    result = run("classify", photos, *arguments)
    assert [json.loads(line) for line in result.out.splitlines()] == expected(paths)


def test_text_and_top_k(run, clip, paths):
    arguments = ("--labels", ",".join(LABELS), "--model", clip, "--dtype", "fp32", "--top-k", 1)
    result = run("classify", paths[0], *arguments)
    [row] = expected(paths[:1])
    best = next(iter(row["scores"]))
    assert result.out.startswith(f"{paths[0]}: {best} 0.")
    assert "," not in result.out


def test_broken_images_are_named_and_skipped(run, clip, photos, paths):
    (photos / "aa.png").write_text("no image")
    arguments = ("--labels", ",".join(LABELS), "--model", clip, "--dtype", "fp32", "--json")
    result = run("classify", photos, photos / "gone", *arguments)
    assert result.code == 1
    assert [json.loads(line)["image"] for line in result.out.splitlines()] == paths
    assert result.err.splitlines() == [
        f"error: {photos / 'gone'}: no such file or folder",
        f"error: {photos / 'aa.png'}: is not an image that can be read",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--labels", ""], 2, "labels is empty"),
        (["--labels", ","], 2, "labels is empty"),
        (["--labels", "dog,,cat"], 2, "empty one"),
        (["--labels", "dog,cat,dog"], 2, "'dog' more than once"),
        (["--labels", "dog", "--template", "a photo"], 2, "'a photo' has no {}"),
        (["--labels", "dog", "--top-k", "0"], 2, "--top-k"),
        ([], 2, "--labels"),
    ],
)
def test_bad_options(run, clip, photos, arguments, code, message):
    result = run("classify", photos, "--model", clip, *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_a_model_without_two_towers(run, model, photos):
    result = run("classify", photos, "--labels", "dog", "--model", model)
    assert (result.code, result.out) == (1, "")
    assert "it holds the weights of BlipForConditionalGeneration" in result.err


def test_a_model_with_half_of_its_weights_does_not_guess(run, photos, tmp_path):
    tiny_model("hfvlm_clip", "AutoModelForImageClassification").save_pretrained(tmp_path / "half")
    tiny_processor("hfvlm_clip").save_pretrained(tmp_path / "half")
    result = run("classify", photos, "--labels", "dog,cat", "--model", tmp_path / "half")
    assert (result.code, result.out) == (1, "")
    assert "half lacks 31 weights of ClipModel (in logit_scale, text_model, " in result.err
    assert "ClipForImageClassification" in result.err


def test_nothing_found(run, clip, tmp_path):
    result = run("classify", tmp_path, "--labels", "dog", "--model", clip)
    assert result.code == 2
    assert "no image in this folder" in result.err
