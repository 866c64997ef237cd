"""Rows of a file of questions, what is wrong with one, and the batch that is made of them."""

import json

import pytest
import torch
from contract.heads import ANSWERERS, every
from PIL import Image
from tiny import tiny_processor

from hfvlm.data.questions import AnswerCollator, commonest_answer, count_unlearnable, read_questions


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
        ([], "must be an object of columns, got list"),
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
    with pytest.raises(ValueError, match="vqa.jsonl: holds no rows"):
        read_questions(write(tmp_path), "val")


def item(question: str, *answers: str, **more) -> dict:
    return {"image": Image.new("RGB", (9, 9)), "question": question, "answers": list(answers), **more}


@every(ANSWERERS)
def test_a_batch_has_each_answer_once_by_how_many_gave_it(head):
    """What the head makes of it is what it makes of every person's answer by itself."""
    processor, model = tiny_processor(head.model_type), head.model()
    items = [item("a dog", "red", "the cat", "red", "red"), item("the black house", "two", weight=0.5)]
    batch = AnswerCollator(processor)(items)
    assert set(batch) == {
        *("pixel_values", "input_ids", "attention_mask"),
        *("labels", "answer_counts", "answer_weights"),
    }
    assert batch["answer_counts"].tolist() == [2, 1] and batch["answer_weights"].tolist() == [0.75, 0.25, 0.5]
    assert (batch["input_ids"][:, 0] == processor.tokenizer.cls_token_id).all()
    words = processor.tokenizer.convert_tokens_to_ids(["red", "[SEP]", "the", "cat"])
    assert batch["labels"].tolist()[:2] == [[-100, *words[:2], -100], [-100, words[2], words[3], words[1]]]
    losses = []
    for one in items:
        for answer in one["answers"]:
            single = AnswerCollator(processor)([{**one, "answers": [answer]}])
            assert single["answer_weights"].tolist() == [one.get("weight", 1.0)]
            losses.append(model(**single, alpha=0.0).loss)
    expected = (torch.stack(losses[:4]).mean() + losses[4]) / 2
    torch.testing.assert_close(model(**batch, alpha=0.0).loss, expected)


def test_an_answer_that_could_not_be_written_is_not_learned():
    batch = AnswerCollator(tiny_processor("blip"))([item("a dog", "zebra", "dog"), item("a zebra", "the zebra")])
    assert batch["answer_weights"].tolist() == [0.0, 0.5, 0.0]


def test_rows_without_an_answer_that_could_be_written_are_counted():
    tokenizer = tiny_processor("blip").tokenizer
    assert count_unlearnable([["red"], ["xylophone", "red"], ["xylophone"], ["a xylophone"]], tokenizer) == 2
    assert count_unlearnable([], tokenizer) == 0


def test_long_questions_and_answers_are_cut():
    processor = tiny_processor("albef")
    batch = AnswerCollator(processor, max_length=5)([item("dog " * 9, "cat " * 60)])
    assert batch["input_ids"].shape == (1, 5)
    assert batch["labels"].shape == (1, 40) and batch["labels"][0, -1] == processor.tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (item(" ", "red"), "a question is empty"),
        (item("a dog"), "the question 'a dog' has no answer, or an empty one"),
        (item("a dog", "red", ""), "the question 'a dog' has no answer, or an empty one"),
        ({"question": "a dog", "answers": ["red"]}, "an item has no 'image', only .*remove_unused_columns=False"),
        ({"image": None, "question": "a dog"}, "an item has no 'answers', only"),
    ],
)
def test_an_item_that_makes_no_batch(bad, message):
    with pytest.raises(ValueError, match=message):
        AnswerCollator(tiny_processor("blip"))([bad])


def test_what_most_people_answered():
    assert commonest_answer(["two", "three", "three", "two", "one"]) == "two"
