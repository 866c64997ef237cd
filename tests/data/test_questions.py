"""`read_questions`: rows of a file, and what is wrong with one."""

import json

import pytest

from hfvlm.data.questions import read_questions


ROW = {"image": "images/a.jpg", "question": "what is it", "answer": "dog", "split": "test"}


def write(folder, *rows):
    path = folder / "vqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows(tmp_path):
    several = {"image": "b.jpg", "question": "how many", "answers": ["2"] * 9 + ["3"], "split": "train"}
    path = write(tmp_path, ROW, several)
    first, second = read_questions(path)
    assert first == {**ROW, "image": tmp_path / "images/a.jpg", "answers": ["dog"]}
    assert second["answers"] == several["answers"]
    assert read_questions(path, "train") == [second]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "what", "answer": "a"}, "has no 'image' that is a string; it has question, answer"),
        ({"image": "a.jpg", "answer": "a"}, "has no 'question' that is a string; it has image, answer"),
        ({"image": "a.jpg", "question": "what"}, "has neither 'answer' nor 'answers'; it has image, question"),
        ({**ROW, "answers": []}, "'answers' a list of at least one"),
        ({**ROW, "answer": 2}, "'answer' must be a string"),
        ({**ROW, "answers": "dog"}, "'answers' a list of at least one"),
        ([], "not an object with image, question and answer"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path, ROW, row)
    with pytest.raises(ValueError, match=f"vqa.jsonl:2: .*{message}"):
        read_questions(path)


def test_no_json(tmp_path):
    path = tmp_path / "vqa.jsonl"
    path.write_text("{\n")
    with pytest.raises(ValueError, match="vqa.jsonl:1: "):
        read_questions(path)


def test_an_empty_split_names_those_that_there_are(tmp_path):
    with pytest.raises(ValueError, match="no row of split 'val'; it has test"):
        read_questions(write(tmp_path, ROW), "val")
    with pytest.raises(ValueError, match="no row of split 'val'; it has no rows at all"):
        read_questions(write(tmp_path), "val")
