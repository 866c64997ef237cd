"""Reading images with noisy texts: every kind of input gives the same rows, and says what is wrong with it."""

import json

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from hfvlm.data import web
from hfvlm.data.web import WebRow, open_rows


TEXTS = [f"a dog {i}" for i in range(7)]


@pytest.fixture
def images(tmp_path):
    for i in range(len(TEXTS)):
        Image.new("RGB", (8, 8), (i * 30, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def expected(folder) -> list[WebRow]:
    return [WebRow(i, str(folder / f"{i}.png"), (text,)) for i, text in enumerate(TEXTS)]


def test_jsonl_is_entered_anywhere(images, monkeypatch):
    monkeypatch.setattr(web, "STRIDE", 2)
    lines = [json.dumps({"image": f"{i}.png", "text": text}) for i, text in enumerate(TEXTS)]
    (images / "web.jsonl").write_text("\n\n".join(lines))  # blank lines do not count
    rows = open_rows(images / "web.jsonl")
    assert (len(rows), rows.in_bytes) == (7, False)
    for start in range(8):
        for stop in range(start, 9):
            assert rows.read(start, stop) == expected(images)[start:stop]


def test_several_texts_blank_ones_left_out(images):
    row = {"image": "https://example.org/0.png", "captions": [" a dog ", "", None, "a cat"]}
    (images / "web.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"image": "1.png", "text": None}))
    first, second = open_rows(images / "web.jsonl").read(0, 2)
    assert first == WebRow(0, "https://example.org/0.png", ("a dog", "a cat"))
    assert second.texts == ()


def test_parquet_by_row_groups_and_files(images):
    table = pyarrow.table({"image": [f"{i}.png" for i in range(7)], "text": TEXTS, "more": [1] * 7})
    parquet.write_table(table, images / "web.parquet", row_group_size=3)
    (images / "shards").mkdir()
    for i, part in enumerate((table[:4], table[4:])):
        moved = part.set_column(0, "image", pyarrow.array([f"../{name}" for name in part["image"].to_pylist()]))
        parquet.write_table(moved, images / "shards" / f"{i}.parquet")
    for path in (images / "web.parquet", images / "shards"):
        rows = open_rows(path)
        assert (len(rows), rows.in_bytes) == (7, False)
        for start in range(8):
            assert rows.read(start, start + 3) == expected(images)[start : start + 3]


def test_a_folder_of_datasets_holds_the_files_themselves(images):
    columns = {"image": [str(images / f"{i}.png") for i in range(7)], "captions": [[text] for text in TEXTS]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.save_to_disk(images / "saved")
    rows = open_rows(images / "saved")
    assert (len(rows), rows.in_bytes) == (7, True)
    read = rows.read(5, 9)
    assert [row.texts for row in read] == [(text,) for text in TEXTS[5:]]
    assert read[0].image == (images / "5.png").read_bytes()
    table.to_parquet(images / "bytes.parquet")
    assert open_rows(images / "bytes.parquet").in_bytes
    datasets.DatasetDict({"train": table}).save_to_disk(images / "splits")
    with pytest.raises(ValueError, match=r"holds the splits train; name the folder of one, .*splits/train"):
        open_rows(images / "splits")


def test_another_input_has_another_digest(images):
    digests = set()
    for text in ("a dog", "a cat", "a cat sits"):
        (images / "web.jsonl").write_text(json.dumps({"image": "0.png", "text": text}))
        digests.add(open_rows(images / "web.jsonl").digest())
    assert len(digests) == 3
    assert open_rows(images / "web.jsonl").digest() in digests


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl: has no row"),
        ("a.jsonl", '{"image": "0.png", "alt": "a"}', "a.jsonl:1: has no 'text' or 'captions', only alt, image"),
        ("a.jsonl", '{"text": "a"}', "a.jsonl:1: has no 'image', only text"),
        ("a.jsonl", "[]", "a.jsonl:1: must be an object"),
        ("a.jsonl", "{", "a.jsonl:1: is not JSON"),
        ("a.jsonl", '{"image": 3, "text": "a"}', "a.jsonl:1: image must be a path, .* got int '3'"),
        (
            "a.jsonl",
            '{"image": "0.png", "text": 3}',
            "a.jsonl:1: texts must be a string or a list of strings, got int",
        ),
        ("a.csv", "image,text", "a.csv: must be .jsonl, .parquet, or a folder"),
        ("a.parquet", "image,text", "a.parquet: is not parquet, or damaged"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_rows(tmp_path / name).read(0, 1)


def test_bad_folders_and_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such file or folder"):
        open_rows(tmp_path / "gone")
    with pytest.raises(ValueError, match="holds neither parquet files nor what datasets' save_to_disk writes"):
        open_rows(tmp_path)
    parquet.write_table(pyarrow.table({"image": ["0.png"], "alt": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: has no 'text' or 'captions', only alt, image"):
        open_rows(tmp_path)
    empty = pyarrow.table({"image": pyarrow.array([], pyarrow.string()), "text": pyarrow.array([], pyarrow.string())})
    parquet.write_table(empty, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no row"):
        open_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("datasets", "saved")])
def test_missing_packages_are_named(tmp_path, package, name, monkeypatch):
    (tmp_path / "a.parquet").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(ImportError, match=f"needs {package}: `pip install {package}`"):
        open_rows(tmp_path / name)
