"""`hfvlm ask`: answers to a question about an image, best first."""

import json

import pytest
from tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def answerer(tmp_path_factory) -> str:
    """Folder of a tiny model that answers."""
    folder = tmp_path_factory.mktemp("answerer")
    tiny_model("blip", "AutoModelForVisualQuestionAnswering").save_pretrained(folder)
    tiny_processor("blip").save_pretrained(folder)
    return str(folder)


def test_answers_are_written_or_chosen(run, answerer, photos):
    asked = ("ask", photos / "a.png", "two red dogs", "--model", answerer)
    result = run(*asked, "--top-k", "2", "--json")
    assert result.code == 0
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert len(rows) == 2 and rows[0]["score"] >= rows[1]["score"]
    assert rows[0]["question"] == "two red dogs" and rows[0]["answer"]
    chosen = run(*asked, "--candidate", "a dog", "--candidate", "two cats")
    assert {line.split("  ")[1] for line in chosen.out.splitlines()} == {"a dog", "two cats"}


def test_bad_input_is_told_in_a_line(run, answerer, model, photos):
    for arguments, code, message in (
        ((photos / "none.png", "a dog", "--model", answerer), 1, "none.png"),
        ((photos / "a.png", " ", "--model", answerer), 2, "is empty"),
        ((photos / "a.png", "a dog", "--model", model), 1, "it holds the weights of BlipForConditionalGeneration"),
        ((photos / "a.png", "a dog", "--model", answerer, "--candidate", " "), 1, "a candidate is empty"),
    ):
        result = run("ask", *arguments)
        assert (result.code, result.out) == (code, "")
        assert message in result.err and result.err.count("\n") == 1


def test_answers_are_evaluated(run, answerer, photos, tmp_path):
    rows = [{"image": str(photos / "a.png"), "question": "two red dogs", "answers": ["a dog"], "split": "test"}] * 3
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("evaluate", "vqa", "--data", tmp_path / "vqa.jsonl", "--model", answerer, "--split", "test", "--json")
    assert result.code == 0, result.err
    assert 0 <= json.loads(result.out)["vqa_accuracy"] <= 1
