"""Texts about images on disk, one image each or two, with the class of each."""

import json
from pathlib import Path
from typing import Any


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
        the rows of `split` (all if None): images resolved against the file's folder, `text`, and `label`, a number or
        a string.

    Raises:
        ValueError: a line that is not such an object, by file and line; or no row in the split.
    """
    path = Path(path)
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_row(json.loads(line), path.parent, two_images))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = ", ".join(sorted({str(row.get("split")) for row in rows}))
        raise ValueError(f"{path} has no row of split {split!r}; it has {splits or 'no rows at all'}")
    return chosen


def _row(row: Any, folder: Path, two_images: bool) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"not an object with image, text and label, but {type(row).__name__}")
    text = next((name for name in TEXTS if name in row), TEXTS[0])
    for name in ("image", *([SECOND] if two_images else []), text):
        if not isinstance(row.get(name), str):
            raise ValueError(f"has no {name!r} that is a string; it has {', '.join(row) or 'nothing'}")
    label = row.get("label")
    if isinstance(label, bool):
        label = str(label)
    if not isinstance(label, (str, int)):
        raise ValueError(f"'label' must be the number of a class or its name, got {label!r}")
    images = {name: folder / row[name] for name in ("image", SECOND) if isinstance(row.get(name), str)}
    return {**row, **images, "text": row[text], "label": label}


def class_numbers(labels: list[str | int], names: dict[int, str]) -> list[int]:
    """The numbers of classes that are given by number or by name (capitals do not matter).

    Args:
        names: number -> name, a config's `id2label`.

    Raises:
        ValueError: there is no such class; names those that there are.
    """
    by_name = {name.lower(): number for number, name in names.items()}
    numbers = []
    for row, label in enumerate(labels):
        number = label if isinstance(label, int) else by_name.get(label.lower())
        if number not in names:
            known = ", ".join(f"{number} ({name})" for number, name in names.items())
            raise ValueError(f"rows[{row}] has the label {label!r}, this model has the classes {known}")
        numbers.append(number)
    return numbers
