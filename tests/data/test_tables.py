"""Rows of .jsonl, .json, .parquet and what `datasets` saves."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from hfvlm.data.captions import read_captions
from hfvlm.data.judgements import read_judgements
from hfvlm.data.questions import read_questions
from hfvlm.data.shards import Kept, ShardFolder
from hfvlm.data.tables import read_table


ROWS = [{"image": f"{i}.png", "text": f"photo {i}", "split": "train" if i < 2 else "val"} for i in range(3)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": Dataset.from_list(ROWS[:2]), "val": Dataset.from_list(ROWS[2:])}).save_to_disk(
        str(tmp_path / "several")
    )
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "one"])
def test_every_kind_of_file_gives_the_same_rows(files, name):
    table, columns = read_table(files / name)
    assert [dict(row) for row in table] == ROWS and columns == ["image", "text", "split"]
    table, _ = read_table(files / name, "val")
    assert [row["text"] for row in table] == ["photo 2"]
    with pytest.raises(ValueError, match=f"{name}: has no row of split 'test'; it has train, val"):
        read_table(files / name, "test")


def test_a_folder_of_parquet_files(tmp_path):
    """In the order of their names; hidden ones, of which some may be half-written, are passed over."""
    folder = ShardFolder(tmp_path, {"captioner": "a"})
    for shard, rows in ((1, [2]), (0, [0, 1]), (2, [])):
        texts = [f"photo {i}" for i in rows]
        images = [f"{tmp_path}/{i}.png" for i in rows]
        folder.write(shard, Kept(images, texts, ["web"] * len(rows), [1.0] * len(rows), rows))
    (tmp_path / ".shard-new.parquet").write_text("half")
    table, columns = read_table(tmp_path)
    assert [row["text"] for row in table] == ["photo 0", "photo 1", "photo 2"]
    assert columns == ["image", "text", "source", "score", "row"]
    (tmp_path / "broken.parquet").write_text("half")
    with pytest.raises(ValueError, match="is not a folder of Parquet files of the same columns"):
        read_table(tmp_path)


def test_a_folder_of_several_splits(files):
    assert len(read_table(files / "several", "train")[0]) == 2
    with pytest.raises(ValueError, match="holds several splits, say which; it has train, val"):
        read_table(files / "several")
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        read_table(files / "several", "test")


def test_images_of_datasets_stay_encoded(tmp_path):
    features = Features({"image": Image(), "text": Value("string")})
    rows = [{"image": {"bytes": b"png", "path": None}, "text": "a"}]
    Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "data"))
    table, _ = read_table(tmp_path / "data")
    assert table[0]["image"]["bytes"] == b"png"
    with pytest.raises(ValueError, match="has no column 'split'"):
        read_table(tmp_path / "data", "train")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.jsonl", '{"a": 1}\n{', "rows.jsonl:2: is no JSON"),
        ("rows.jsonl", "[1]", "rows.jsonl:1: must be an object of columns, got list"),
        ("rows.jsonl", "\n", "holds no rows"),
        ("rows.json", "{", "is no JSON"),
        ("rows.json", '{"a": 1}', "must hold a list of objects"),
        ("rows.parquet", "text", "is not a Parquet file"),
        ("rows.csv", "a,b", "cannot be read, take .jsonl, .json, .parquet, a folder of .parquet or one"),
        ("none/rows.json", None, "no such file or folder"),
    ],
)
def test_what_holds_no_rows(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a folder that datasets saved"):
        read_table(tmp_path)


def test_rows_without_splits(tmp_path):
    (tmp_path / "rows.json").write_text('[{"a": 1}]')
    with pytest.raises(ValueError, match="its rows name no split, leave split out"):
        read_table(tmp_path / "rows.json", "train")


@pytest.mark.parametrize("read", [read_captions, read_questions, read_judgements])
def test_every_reader_passes_over_blank_lines_and_names_splits_alike(read, tmp_path):
    row = {"image": "a.png", "captions": ["a"], "question": "a", "answer": "b", "text": "a", "label": True}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps({**row, "split": "test"}) + "\n\n" + json.dumps(row) + "\n \n")
    assert [row["image"] for row in read(path)] == [tmp_path / "a.png"] * 2 and len(read(path, "test")) == 1
    with pytest.raises(ValueError, match="rows.jsonl: has no row of split 'val'; it has test"):
        read(path, "val")
    path.write_text("\n")
    with pytest.raises(ValueError, match="rows.jsonl: holds no rows"):
        read(path)
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="its rows name no split, leave split out"):
        read(path, "test")
