"""Rows with named columns from the kinds of files that image-text data comes in."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


#: files of rows by their suffix; a folder holds Parquet files, or is one that `datasets` saved
SUFFIXES = (".jsonl", ".json", ".parquet")


def read_table(path: str | Path, split: str | None = None) -> tuple[Sequence[dict[str, Any]], list[str]]:
    """Reads a `.jsonl` (an object a line), a `.json` (a list of objects), a `.parquet`, a folder of such (in the order
    of their names), or a folder that `datasets.save_to_disk` wrote.

    Args:
        split: of a folder with several data sets the one of that name; elsewhere the rows whose `split` it is. None:
            all rows.

    Returns:
        the rows, each a dict: a list, or a `datasets.Dataset`, which stays on disk and whose images stay encoded; and
        the names of the columns.

    Raises:
        ValueError: nothing there, a file of another kind, a broken line, no rows, or no such split.
        ImportError: `datasets` is needed, and not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_dir() or path.suffix == ".parquet":
        return _from_datasets(path, split)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: cannot be read, take {', '.join(SUFFIXES)}, a folder of .parquet or one that datasets saved"
        )
    rows = _json_lines(path) if path.suffix == ".jsonl" else _json_list(path)
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    rows = _rows_of_split(path, rows, split)
    return rows, list(dict.fromkeys(name for row in rows for name in row))


def read_lines(
    path: str | Path, split: str | None, check: Callable[[dict[str, Any], Path], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Reads a `.jsonl`, an object a line; blank lines do not count.

    Args:
        split: only the rows whose `split` it is; None: all.
        check: `(row, the file's folder)` -> the row as it should be, or a ValueError.

    Raises:
        ValueError: a line that is no such object, by file and line; no row, or none of the split.
        OSError: the file cannot be read.
    """
    path = Path(path)
    rows = _json_lines(path, lambda row: check(row, path.parent))
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return _rows_of_split(path, rows, split)


def require_texts(row: dict[str, Any], *names: str) -> None:
    """
    Raises:
        ValueError: a row has no string under one of the names.
    """
    for name in names:
        if not isinstance(row.get(name), str):
            raise ValueError(f"has no {name!r} that is a string; it has {', '.join(row) or 'nothing'}")


def _json_lines(path: Path, check: Callable[[dict], dict] = lambda row: row) -> list[dict]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: must be an object of columns, got {type(row).__name__}")
            try:
                rows.append(check(row))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    return rows


def _json_list(path: Path) -> list[dict]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: must hold a list of objects, each a row")
    return rows


def _rows_of_split(path: Path, rows: list[dict], wanted: str | None) -> list[dict]:
    if wanted is None:
        return rows
    return [rows[i] for i in _of_split(path, [row.get("split") for row in rows], wanted)]


def _of_split(path: Path, splits: Sequence[Any], wanted: str) -> list[int]:
    """Numbers of the rows of one split."""
    chosen = [i for i, split in enumerate(splits) if split == wanted]
    if not chosen:
        known = sorted({str(split) for split in splits if split is not None})
        there = f"it has {', '.join(known)}" if known else "its rows name no split, leave split out"
        raise ValueError(f"{path}: has no row of split {wanted!r}; {there}")
    return chosen


def _is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote it."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_datasets(path: Path, split: str | None) -> tuple[Sequence[dict[str, Any]], list[str]]:
    try:
        from datasets import Dataset, DatasetDict, Image, load_from_disk
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs datasets: pip install 'hfvlm[train]'") from error
    shards = [] if _is_saved(path) else sorted(one for one in path.glob("*.parquet") if not one.name.startswith("."))
    try:
        if path.is_dir() and not shards:
            data = load_from_disk(str(path))
        else:
            data = Dataset.from_parquet([str(file) for file in shards] or str(path))
    except Exception as error:  # of pyarrow, fsspec or datasets, with no common base
        whole = (
            "a folder of Parquet files of the same columns"
            if shards
            else "a folder that datasets saved, or of .parquet"
        )
        expected = whole if path.is_dir() else "a Parquet file"
        raise ValueError(f"{path}: is not {expected} ({error})") from error
    if isinstance(data, DatasetDict):
        if split not in data:
            said = "holds several splits, say which" if split is None else f"has no split {split!r}"
            raise ValueError(f"{path}: {said}; it has {', '.join(data)}")
        data, split = data[split], None
    if split is not None:
        if "split" not in data.column_names:
            raise ValueError(f"{path}: has no column 'split' to find {split!r} in, leave split out")
        data = data.select(_of_split(path, data["split"], split))
    if not len(data):
        raise ValueError(f"{path}: holds no rows")
    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data, data.column_names
