"""`read_judgements`: rows of a file, what is wrong with one, and classes by number and by name."""

import json

import pytest

from hfvlm.data.judgements import class_numbers, read_judgements


ROW = {"image": "a.jpg", "image_second": "b.jpg", "text": "two dogs", "label": True, "split": "test"}


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows(tmp_path):
    entailment = {"image": "c.jpg", "sentence": "a cat", "label": 2, "split": "train"}
    path = write(tmp_path, ROW, entailment)
    first, second = read_judgements(path)
    assert first == {**ROW, "image": tmp_path / "a.jpg", "image_second": tmp_path / "b.jpg"}
    assert (second["text"], second["label"]) == ("a cat", 2)
    assert read_judgements(path, "train") == [second]
    assert read_judgements(write(tmp_path, ROW), "test", two_images=True) == [first]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 0}, "has no 'image' that is a string; it has text, label"),
        ({"image": "a.jpg", "text": "a", "label": 0}, "has no 'image_second' that is a string"),
        ({**ROW, "text": ["a"]}, "has no 'text' that is a string"),
        ({**ROW, "label": None}, "'label' must be the number of a class, 0 or above, or its name, got None"),
        ({**ROW, "label": 0.5}, "or its name, got 0.5"),
        ({**ROW, "label": -1}, "or its name, got -1"),
        ({**ROW, "label": ""}, "or its name, got ''"),
        ([], "must be an object of columns, got list"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    with pytest.raises(ValueError, match="rows.jsonl:2: ") as error:
        read_judgements(write(tmp_path, ROW, row), two_images=True)
    assert message in str(error.value)


def test_no_such_split(tmp_path):
    with pytest.raises(ValueError, match="has no row of split 'val'; it has test"):
        read_judgements(write(tmp_path, ROW), "val")


def test_classes_by_number_and_by_name():
    names = {0: "False", 1: "True"}
    assert class_numbers([1, "True", "false", 0, True, False], names) == [1, 1, 0, 0, 1, 0]
    assert class_numbers([True, False, 0], {0: "True", 1: "False"}) == [0, 1, 0]
    for label in (2, "maybe"):
        with pytest.raises(ValueError, match=rf"rows\[1\] has the label {label!r}, .* 0 \(False\), 1 \(True\)"):
            class_numbers([0, label], names)
