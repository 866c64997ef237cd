"""Rows of a file by the columns of a task, checked, and as items to make batches of."""

import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from hfvlm.data.augment import training_view
from hfvlm.data.captions import draw_captions, random_view, seeded
from hfvlm.data.judgements import class_numbers, is_label
from hfvlm.data.tables import read_table
from hfvlm.images import ImageError, open_image
from hfvlm.training.mistakes import Mistakes, kind, nearest
from hfvlm.training.recipe import RAND_AUGMENT, Source
from hfvlm.training.tasks import Column, Task


#: rows whose images are opened before training starts; of data sets on disk no other rows are looked at
FIRST_ROWS = 8
#: mistakes of a source that are told
SHOWN = 3
#: what columns hold that have one text or several
LISTS = ("texts", "answers")


class Rows(Dataset):
    """Rows of a table as items: `{column of the task: value, "index": the image's number}`.

    What is drawn for an item, its texts and the view of its image, depends on the seed, the epoch and the row alone:
    a run that is resumed goes on as if it had not stopped.

    Args:
        table: a list of dicts, or a `datasets.Dataset`.
        columns: column of the task -> what it is called in the table.
        holds: column of the task -> what it holds.
        folder: that paths of images are relative to.
        texts: how many texts an item has; None: all.
        augment: the least share of the area that random views of the images show; "rand_augment": views of
            `view_size` as `training_view` draws them; None: whole images.
        seed: of what is drawn; None: nothing is, an item has its first texts.
    """

    def __init__(
        self,
        table: Sequence[dict[str, Any]],
        columns: dict[str, str],
        holds: dict[str, str],
        folder: Path,
        texts: int | None = 1,
        augment: float | str | None = None,
        seed: int | None = 0,
    ):
        self.table, self.columns, self.holds, self.folder = table, columns, holds, folder
        self.texts, self.augment, self.seed = texts, augment, seed
        self.view_size: tuple[int, int] | None = None  # (width, height) that the processor gives images
        self.epoch = 0  # that items are drawn for
        self._numbers = self._number_images()
        self._classes: list[int] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def values(self, column: str) -> list[Any]:
        """A column of the table, None where a row lacks it."""
        return [row.get(column) for row in self.table] if isinstance(self.table, list) else self.table[column]

    def _number_images(self) -> list[int] | None:
        """The number of each row's image: rows of one `image_id`, or of one path, show the same image; a row without
        has a number of its own."""
        name = self.columns.get("image_id", self.columns.get("image"))
        if name is None or not isinstance(self.table[0].get(name), (str, int)):
            return None  # images themselves: each its own
        seen: dict[Any, int] = {}
        keys = (key if isinstance(key, (str, int)) else (place,) for place, key in enumerate(self.values(name)))
        return [seen.setdefault(key, len(seen)) for key in keys]

    def source(self, index: int, name: str = "image") -> Any:
        """Where an image of a row is: anything that `open_image` takes."""
        return self._source(self.table[index][self.columns[name]])

    def _source(self, value: Any) -> Any:
        if isinstance(value, dict):  # as `datasets` stores images
            value = value["bytes"] if value.get("bytes") is not None else value["path"]
        if isinstance(value, (str, os.PathLike)) and not str(value).startswith(("http://", "https://", "data:")):
            return self.folder / value
        return value

    def missing_images(self) -> Iterator[tuple[int, Path]]:
        """Rows whose images are files that are not there, and the file, each file once.

        Columns of a data set on disk that hold the images themselves are not read.
        """
        known: set[Path] = set()
        for column in (self.columns[name] for name in self.columns if self.holds[name] == "image"):
            if not isinstance(self.table, list) and not isinstance(self.table[0][column], str):
                continue
            for index, value in enumerate(self.values(column)):
                source = self._source(value)
                if isinstance(source, Path) and source not in known:
                    known.add(source)
                    if not source.is_file():
                        yield index, source

    def labels(self) -> list[str | int | bool]:
        """The classes of the rows as the table has them; none without such a column."""
        column = next((self.columns[name] for name in self.columns if self.holds[name] == "class"), None)
        return [] if column is None else list(self.values(column))

    def number_classes(self, names: dict[int, str]) -> None:
        """Gives items the numbers of their classes, which a column may also hold by name; without one it does nothing.

        Args:
            names: number -> name, a config's `id2label`.

        Raises:
            ValueError: a row has a class that there is not.
        """
        labels = self.labels()
        if labels:
            self._classes = class_numbers(labels, names)

    def name(self, index: int) -> str:
        """What to call a row's image."""
        source = self.source(index)
        return source.name if isinstance(source, Path) else f"row {index}"

    def _view(self, image: Image.Image, draw: torch.Generator) -> Image.Image:
        if self.augment != RAND_AUGMENT:
            return random_view(image, draw, self.augment)
        with torch.random.fork_rng(devices=[]):  # it draws torch's own numbers
            torch.default_generator.set_state(draw.get_state())
            return training_view(image, self.view_size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, item = self.table[index], {"index": index if self._numbers is None else self._numbers[index]}
        draw = None if self.seed is None else seeded(self.seed, self.epoch, index)
        for name, column in self.columns.items():
            value, holds = row[column], self.holds[name]
            if holds == "image":
                value = open_image(self.source(index, name))
                value = value if self.augment is None else self._view(value, draw)
            elif holds in LISTS:
                value = [value] if isinstance(value, str) else list(value)
                if not value:
                    raise ValueError(f"row {index} has no {name}: leave it out of the data")
                if holds == "answers":
                    pass  # none is drawn
                elif self.texts is not None and draw is not None:
                    value = draw_captions(value, self.texts, draw)
                elif self.texts is not None:
                    value = [value[i % len(value)] for i in range(self.texts)]
            elif holds == "class" and self._classes is not None:
                value = self._classes[index]
            item[name] = value
        return item


def read_rows(
    source: Source,
    where: str,
    task: Task,
    mistakes: Mistakes,
    texts: int | None,
    augment: float | str | None,
    seed: int | None,
) -> Rows | None:
    """The rows of a source; None where mistakes were found, of which the first are added.

    All rows of a `.jsonl` or `.json` are looked at, and every image that is a file must be there; of data sets on
    disk the first `FIRST_ROWS` are, and all paths. So many images are opened.

    Args:
        where: the source's key in the recipe.
        texts, augment, seed: as in `Rows`.
    """
    try:
        table, names = read_table(source.path, source.split)
    except (ValueError, OSError, ImportError) as error:
        mistakes.add(where, str(error))
        return None
    if source.images is not None and not source.images.is_dir():
        mistakes.add(f"{where}.images", f"{source.images}: no such folder")
        return None
    columns = _choose_columns(source, where, task.columns, names, mistakes)
    if columns is None:
        return None
    holds = {name: task.columns[name].holds for name in columns}
    folder = source.images or (source.path if source.path.is_dir() else source.path.parent)
    rows = Rows(table, columns, holds, folder, texts, augment, seed)
    before = len(mistakes.found)
    images = [name for name in columns if holds[name] == "image"]
    # rows that are in memory cost nothing to look at; those on disk hold their images
    for i in range(len(table) if isinstance(table, list) else min(len(table), FIRST_ROWS)):
        found = len(mistakes.found)
        _check_row(table[i], i, where, columns, holds, mistakes)
        if len(mistakes.found) == found and i < FIRST_ROWS:
            try:
                for name in images:
                    open_image(rows.source(i, name))
            except (ImageError, TypeError, KeyError) as error:
                mistakes.add(where, f"row {i}: {error}")
        if len(mistakes.found) >= before + SHOWN:
            break  # the others are wrong in the same way
    if len(mistakes.found) == before:
        for i, path in islice(rows.missing_images(), SHOWN):
            mistakes.add(where, f"row {i}: {path}: no such file")
    return rows if len(mistakes.found) == before else None


def _choose_columns(
    source: Source, where: str, wanted: dict[str, Column], names: list[str], mistakes: Mistakes
) -> dict[str, str] | None:
    """Column of the task -> what it is called in the file."""
    before = len(mistakes.found)
    for name in source.columns:
        if name not in wanted:
            mistakes.add(f"{where}.columns.{name}", f"is no column of this task; {nearest(name, wanted)}")
    chosen = {}
    for name, column in wanted.items():
        tried = (source.columns[name],) if name in source.columns else column.names
        there = next((one for one in tried if one in names), None)
        if there is not None:
            chosen[name] = there
        elif column.required or name in source.columns:
            mistakes.add(
                where,
                f"{source.path} has no column {' or '.join(map(repr, tried))}, it has {', '.join(names)}; say which "
                f"holds what with columns: {{{name}: NAME}}",
            )
    return chosen if len(mistakes.found) == before else None


def _check_row(row: dict, number: int, where: str, columns: dict, holds: dict, mistakes: Mistakes) -> None:
    """Whether a row has all that its columns should hold."""
    for name, column in columns.items():
        value = row.get(column)
        place = f"row {number}, column {column!r}"
        if holds[name] in LISTS:
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                mistakes.add(where, f"{place} must hold a text or a list of texts, got {kind(value)}")
            elif not any(text.strip() for text in texts):
                mistakes.add(where, f"{place} holds no text: leave such rows out")
            elif holds[name] == "answers" and not all(text.strip() for text in texts):
                mistakes.add(where, f"{place} holds an empty text among others: leave it out")
        elif holds[name] == "text" and not isinstance(value, str):
            mistakes.add(where, f"{place} must hold a text, got {kind(value)}")
        elif holds[name] == "text" and not value.strip():
            mistakes.add(where, f"{place} holds no text: leave such rows out")
        elif holds[name] == "weight" and (type(value) not in (int, float) or not 0 < value < math.inf):
            mistakes.add(where, f"{place} must hold a number above 0, got {value!r}")
        elif holds[name] == "class" and not is_label(value):
            mistakes.add(where, f"{place} must hold the number of a class, 0 or above, or its name, got {value!r}")
        elif holds[name] == "image" and value is not None and not isinstance(value, (str, bytes, dict)):
            mistakes.add(where, f"{place} must hold a path or a URL, got {kind(value)}")
        elif name == "image_id" and value is not None and not isinstance(value, (str, int)):
            mistakes.add(where, f"{place} must hold a whole number or a text, got {kind(value)}")
        elif value is None:
            mistakes.add(where, f"{place} is empty")
