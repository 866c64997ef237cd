"""Rows as items: columns by the task's names, draws that repeat, and what is wrong with a file."""

import io
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures

from hfvlm.training.mistakes import Mistakes
from hfvlm.training.recipe import Source
from hfvlm.training.rows import Rows, read_rows
from hfvlm.training.tasks import TASKS, Column, Task


@pytest.fixture
def table(tmp_path):
    """Writes rows to a file, and reads them back for captioning; the rows, and the mistakes."""

    def call(rows: list[dict], task: Task = TASKS["captioning"], **columns: str) -> tuple[Rows | None, list[str]]:
        path, mistakes = tmp_path / "rows.json", Mistakes()
        path.write_text(json.dumps(rows))
        found = read_rows(Source(path, columns=columns), "data.train", task, mistakes, 2, 0.7, 0)
        return found, mistakes.found

    Pictures.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    Pictures.new("RGB", (9, 9), "blue").save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return call


def test_items_have_the_names_of_the_task(table):
    rows, mistakes = table([{"file": "red.png", "text": "a dog"}], image="file", captions="text")
    assert mistakes == [] and len(rows) == 1
    item = rows[0]
    assert item["captions"] == ["a dog", "a dog"] and item["image"].mode == "RGB" and item["index"] == 0
    assert rows.name(0) == "red.png"


def test_rows_of_one_image_have_one_number(table):
    photos = [("red.png", 7), ("blue.png", 8), ("red.png", 7), ("blue.png", 7)]
    rows, _ = table([{"image": path, "caption": "a dog"} for path, _ in photos])
    assert [rows[i]["index"] for i in range(4)] == [0, 1, 0, 1]
    rows, _ = table([{"image": path, "caption": "a dog", "image_id": number} for path, number in photos])
    assert [rows[i]["index"] for i in range(4)] == [0, 1, 0, 0]


def test_draws_repeat_by_epoch_and_row(data):
    source = Source(data / "photos.jsonl")
    options = (TASKS["retrieval"], Mistakes(), 1, 0.7)
    rows, again = (read_rows(source, "data.train", *options, seed) for seed in (3, 3))

    def drawn(rows: Rows) -> list:
        return [(item["captions"], item["image"].tobytes()) for item in (rows[i] for i in range(len(rows)))]

    first = drawn(rows)
    torch.rand(5)
    assert drawn(again) == first
    again.epoch = 1
    assert drawn(again) != first
    again.epoch = 0
    assert drawn(again) == first
    held_out = read_rows(source, "data.evaluation", *options[:2], 1, None, None)
    held_out.epoch = 5
    assert held_out[0]["captions"] == held_out.table[0]["captions"][:1]


def test_images_of_datasets_are_opened(tmp_path):
    buffer = io.BytesIO()
    Pictures.new("RGB", (9, 9), "red").save(buffer, "PNG")
    features = Features({"image": Image(), "caption": Value("string")})
    photos = [{"image": {"bytes": buffer.getvalue(), "path": None}, "caption": "a dog"}] * 2
    Dataset.from_list(photos, features=features).save_to_disk(str(tmp_path / "data"))
    mistakes = Mistakes()
    rows = read_rows(Source(tmp_path / "data"), "data.train", TASKS["retrieval"], mistakes, 1, None, 0)
    assert mistakes.found == []
    assert rows[1]["image"].getpixel((0, 0)) == (255, 0, 0) and rows[1]["index"] == 1 and rows.name(1) == "row 1"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "none.png", "captions": ["a"]}, "data.train: row 0: {folder}/none.png: no such file"),
        ({"image": "broken.png", "captions": ["a"]}, "data.train: row 0: {folder}/broken.png: is not an image"),
        (
            {"image": "red.png", "captions": 3},
            "row 0, column 'captions' must hold a text or a list of texts, got a whole",
        ),
        ({"image": "red.png", "captions": [" "]}, "row 0, column 'captions' holds no text: leave such rows out"),
        ({"image": None, "captions": "a"}, "row 0, column 'image' is empty"),
        (
            {"image": "red.png", "words": "a"},
            "has no column 'captions' or 'caption' or 'text', it has image, words; say which",
        ),
    ],
)
def test_wrong_rows(table, tmp_path, row, message):
    rows, mistakes = table([row])
    assert rows is None and len(mistakes) == 1 and message.format(folder=tmp_path) in mistakes[0]


def test_of_many_wrong_rows_the_first_are_told(table):
    assert len(table([{"image": "none.png", "captions": ["a"]}] * 20)[1]) == 3


GOOD = [{"image": "red.png", "captions": "a", "image_id": 1}] * 1200


@pytest.mark.parametrize(
    "row, message",
    [
        ({"image": "none.png"}, "data.train: row 1200: {folder}/none.png: no such file"),
        ({"image": "."}, "data.train: row 1200: {folder}: no such file"),
        ({"image": 3}, "data.train: row 1200, column 'image' must hold a path or a URL, got a whole number"),
        ({"captions": None}, "row 1200, column 'captions' must hold a text or a list of texts, got nothing"),
        ({"captions": " "}, "row 1200, column 'captions' holds no text"),
        ({"image_id": None}, "row 1200, column 'image_id' is empty"),
        ({"image_id": [1]}, "row 1200, column 'image_id' must hold a whole number or a text, got a list"),
    ],
)
def test_a_wrong_row_behind_the_first_ones(table, tmp_path, row, message):
    rows, mistakes = table([*GOOD, {**GOOD[0], **row}])
    assert rows is None and len(mistakes) == 1 and message.format(folder=tmp_path) in mistakes[0]


def test_a_url_is_no_file_to_look_for(table):
    rows, mistakes = table([*GOOD, {**GOOD[0], "image": "https://example.org/red.png"}])
    assert mistakes == [] and len(rows) == 1201


def test_paths_in_a_data_set_on_disk_are_looked_for(table, tmp_path):
    table(GOOD[:1])
    photos = [{"image": str(tmp_path / name), "caption": "a dog"} for name in ["red.png"] * 9 + ["none.png"] * 2]
    Dataset.from_list(photos).save_to_disk(str(tmp_path / "data"))
    mistakes = Mistakes()
    assert read_rows(Source(tmp_path / "data"), "data.train", TASKS["retrieval"], mistakes, 1, None, 0) is None
    assert mistakes.found == [f"data.train: row 9: {tmp_path / 'none.png'}: no such file"]


def test_rows_without_an_image_id_show_images_of_their_own():
    table = [{"image": "a.png", "image_id": number} for number in (7, None, 7, None, 8)]
    rows = Rows(table, {"image_id": "image_id"}, {"image_id": "any"}, Path("."))
    assert [rows[i]["index"] for i in range(5)] == [0, 1, 0, 2, 3]


def test_wrong_columns(table):
    rows, mistakes = table([{"image": "red.png", "captions": "a"}], captoins="x", image="picture")
    assert rows is None
    assert "data.train.columns.captoins: is no column of this task; did you mean 'captions'?" in mistakes
    assert any("has no column 'picture', it has image, captions" in mistake for mistake in mistakes)


def test_a_row_without_texts_behind_the_first_ones_is_named(data):
    rows = Rows([{"image": "0.png", "captions": []}], {"captions": "captions"}, {"captions": "texts"}, Path("."))
    with pytest.raises(ValueError, match="row 0 has no captions"):
        rows[0]


def test_a_task_is_a_row(table):
    """Other columns come as they are, or as single texts."""
    columns = {"image": Column("image", ("image",)), "question": Column("text", ("question",))}
    columns |= {"answers": Column("texts", ("answers",)), "label": Column("any", ("label",))}
    task = Task("AutoModel", (), lambda processor, length: None, columns, lambda *args: [])
    row = {"image": "red.png", "question": "what?", "answers": ["a", "b"], "label": 3}
    rows, mistakes = table([row], task)
    assert mistakes == []
    item = rows[0]
    assert (item["question"], item["label"], sorted(item["answers"])) == ("what?", 3, ["a", "b"])
    assert "must hold a text, got a whole number" in table([{**row, "question": 4}], task)[1][0]


def test_images_in_another_folder(table, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "red.png", "caption": "a dog"}')
    (tmp_path / "images").mkdir()
    mistakes = Mistakes()
    (tmp_path / "red.png").rename(tmp_path / "images" / "red.png")
    options = ("data.train", TASKS["retrieval"], mistakes, 1, None, 0)
    rows = read_rows(Source(tmp_path / "rows.jsonl", images=tmp_path / "images"), *options)
    assert rows.source(0) == tmp_path / "images" / "red.png"
    assert read_rows(Source(tmp_path / "rows.jsonl", images=tmp_path / "none"), *options) is None
    assert mistakes.found == [f"data.train.images: {tmp_path / 'none'}: no such folder"]
