"""`hfvlm match`: texts judged with an image, best first."""

import json

import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    """Folder of a tiny retrieval model."""
    folder = tmp_path_factory.mktemp("judge")
    tiny_model("blip", "AutoModelForImageTextRetrieval").save_pretrained(folder)
    tiny_processor("blip").save_pretrained(folder)
    return str(folder)


def test_texts_come_best_first(run, judge, photos):
    result = run("match", photos / "a.png", "a dog", "two cats", "a red ball", "--model", judge, "--json")
    assert result.code == 0
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert {row["text"] for row in rows} == {"a dog", "two cats", "a red ball"}
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    plain = run("match", photos / "a.png", "a dog", "--model", judge)
    assert plain.out.endswith("  a dog\n")


def test_a_map_of_the_best_text_is_drawn(run, judge, photos, tmp_path):
    shown = [tmp_path / f"{i}.png" for i in range(2)]
    arguments = ("match", photos / "a.png", "a dog", "two cats", "--model", judge)
    first = run(*arguments, "--map", shown[0])
    assert (first.code, first.out) == (0, run(*arguments).out)
    best = first.out.splitlines()[0].split("  ")[-1]
    run("match", photos / "a.png", best, "--model", judge, "--map", shown[1], "--layer", 1)
    pictures = [Image.open(path) for path in shown]
    assert all(picture.size == Image.open(photos / "a.png").size for picture in pictures)
    assert pictures[0].tobytes() == pictures[1].tobytes() != Image.open(photos / "a.png").tobytes()
    other = run("match", photos / "a.png", best, "--model", judge, "--map", shown[1], "--layer", 0)
    assert other.code == 0 and Image.open(shown[1]).tobytes() != pictures[0].tobytes()


def test_bad_input_is_told_in_a_line(run, judge, model, photos):
    for arguments, code, message in (
        ((photos / "none.png", "a dog", "--model", judge), 1, "none.png"),
        ((photos / "a.png", " ", "--model", judge), 2, "is empty"),
        ((photos / "a.png", "a dog", "--model", judge, "--map", "map.jpg"), 2, "map.jpg: must be a .png in a folder"),
        ((photos / "a.png", "a dog", "--model", judge, "--map", "nowhere/map.png"), 2, "in a folder that is there"),
        ((photos / "a.png", "a dog", "--model", judge, "--layer", 1), 2, "needs --map"),
        ((photos / "a.png", "a dog", "--model", judge, "--map", "map.png", "--layer", 7), 1, "layer must be between"),
        ((photos / "a.png", "a dog", "--model", model), 1, "it holds the weights of BlipForConditionalGeneration"),
    ):
        result = run("match", *arguments)
        assert (result.code, result.out) == (code, "")
        assert message in result.err and result.err.count("\n") == 1
