"""Texts about images on disk, one image each or two, with the class of each."""

from functools import partial
from pathlib import Path
from typing import Any

from hfvlm.data.tables import read_lines, require_texts


#: what the columns of texts and second images may be called
TEXTS = ("text", "sentence")
SECOND = "image_second"


def read_judgements(path: str | Path, split: str | None = None, two_images: bool = False) -> list[dict[str, Any]]:
    """Reads a line a text, `{"image": relative path, "text": ..., "label": ..., "split": ...}`.

    The text may be called `"sentence"`, too. A label is the number of a class, or its name; `true` and `false` are the
    names of these.

    Args:
        two_images: a text is about two, and has an `"image_second"`.

    Returns:
        the rows of `split` (all if None): images resolved against the file's folder, `text`, and `label` as it is.

    Raises:
        ValueError: a line that is not such an object, by file and line; no row, or none in the split.
    """
    return read_lines(path, split, partial(_judged, two_images=two_images))


def _judged(row: dict[str, Any], folder: Path, two_images: bool) -> dict[str, Any]:
    text = next((name for name in TEXTS if name in row), TEXTS[0])
    require_texts(row, "image", *([SECOND] if two_images else []), text)
    if not is_label(row.get("label")):
        raise ValueError(f"'label' must be the number of a class, 0 or above, or its name, got {row.get('label')!r}")
    images = {name: folder / row[name] for name in ("image", SECOND) if isinstance(row.get(name), str)}
    return {**row, **images, "text": row[text]}


def is_label(value: Any) -> bool:
    """Whether it is the number of a class, from 0, or a name; `true` and `false` are the names of these."""
    return bool(value) if isinstance(value, str) else isinstance(value, int) and value >= 0


def class_numbers(labels: list[str | int | bool], names: dict[int, str]) -> list[int]:
    """The numbers of classes given by number or by name; `True` and `False` are names, capitals do not matter.

    Args:
        names: number -> name, a config's `id2label`.

    Raises:
        ValueError: there is no such class; names those that there are.
    """
    by_name = {name.lower(): number for number, name in names.items()}
    numbers = []
    for row, label in enumerate(labels):
        label = str(label) if isinstance(label, bool) else label
        number = label if isinstance(label, int) else by_name.get(label.lower())
        if number not in names:
            known = ", ".join(f"{number} ({name})" for number, name in names.items())
            raise ValueError(f"rows[{row}] has the label {label!r}, this model has the classes {known}")
        numbers.append(number)
    return numbers
