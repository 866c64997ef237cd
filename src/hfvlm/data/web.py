"""Images with noisy texts as the web gives them, read a range of rows at a time from jsonl, parquet or `datasets`."""

import hashlib
import importlib.util
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


#: a jsonl file is entered at every so many rows
STRIDE = 256
#: bytes at both ends of a file that tell it from another of its size
_ENDS = 2**20


@dataclass(frozen=True)
class WebRow:
    """An image and what the web says of it.

    Args:
        number: of the row in its input, from 0.
        image: a path or URL, or the bytes of an image file.
        texts: those that are not blank; perhaps none.
    """

    number: int
    image: str | bytes
    texts: tuple[str, ...]


class WebRows:
    """The rows of one input; `len()` of them, and any range by `read`.

    Args:
        path: where they lie; paths of images are relative to its folder.
        files: what the input consists of, for `digest`.

    Attributes:
        in_bytes: whether the input holds the image files themselves, rather than their paths.
    """

    in_bytes = False

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path, self.files = path, files
        self.folder = path if path.is_dir() else path.parent

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[WebRow]:
        """Rows `start` to `stop`, without `stop`.

        Raises:
            ValueError: a row that is not an image with texts, by its place.
        """
        found = enumerate(self._raw(start, min(stop, len(self))), start)
        return [self._row(number, *raw) for number, raw in found]

    def _raw(self, start: int, stop: int) -> list[tuple[str, Any, Any]]:
        """Where a row is, for errors; its image; its text or texts."""
        raise NotImplementedError

    def digest(self) -> str:
        """16 hexadecimal digits that tell the input from another: of sizes and both ends of the files."""
        digest = hashlib.sha256()
        for file in self.files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_ENDS))
                stream.seek(max(size - _ENDS, 0))
                digest.update(stream.read())
        return digest.hexdigest()[:16]

    def _row(self, number: int, where: str, image: Any, texts: Any) -> WebRow:
        if isinstance(image, dict):  # as `datasets` keeps an image file
            image = image.get("bytes") or image.get("path")
        if not isinstance(image, (str, bytes)) or not image:
            raise ValueError(f"{where}: image must be a path, a URL or the bytes of a file, got {_short(image)}")
        if isinstance(image, str) and not image.startswith(("http://", "https://", "data:")):
            image = os.path.abspath(self.folder / image)
        texts = [texts] if isinstance(texts, str) or texts is None else texts
        if not isinstance(texts, (list, tuple)) or not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: texts must be a string or a list of strings, got {_short(texts)}")
        return WebRow(number, image, tuple(text.strip() for text in texts if text and text.strip()))


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def open_rows(path: str | os.PathLike) -> WebRows:
    """Opens an input; nothing of it but its size and its columns is read yet.

    Args:
        path: `.jsonl` with an object a line; `.parquet`; a folder of parquet files; or a folder that
            `datasets.Dataset.save_to_disk` wrote. Each row has `image`, and `text` (a string) or `captions` (a list).

    Raises:
        FileNotFoundError: there is nothing there.
        ValueError: it is of another kind, lacks a column, or has no row.
        ImportError: the package that reads it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise ValueError(f"{path}: holds the splits {', '.join(splits)}; name the folder of one, {path / 'train'}")
    if path.is_dir() and (path / "state.json").is_file():
        rows: WebRows = DatasetRows(path)
    elif path.is_dir():
        files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
        if not files:
            raise ValueError(f"{path}: holds neither parquet files nor what datasets' save_to_disk writes")
        rows = ParquetRows(path, files)
    elif path.suffix == ".parquet":
        rows = ParquetRows(path, [path])
    elif path.suffix == ".jsonl":
        rows = JsonRows(path)
    else:
        raise ValueError(f"{path}: must be .jsonl, .parquet, or a folder of parquet files or of datasets")
    if not len(rows):
        raise ValueError(f"{path}: has no row")
    return rows


def _text_column(columns: Sequence[str], where: str) -> str:
    """ "text" or "captions", whichever there is beside "image".

    Raises:
        ValueError: one of the two is missing.
    """
    texts = [name for name in ("text", "captions") if name in columns]
    if "image" not in columns or not texts:
        missing = "'image'" if "image" not in columns else "'text' or 'captions'"
        raise ValueError(f"{where}: has no {missing}, only {', '.join(sorted(columns)) or 'nothing'}")
    return texts[0]


class JsonRows(WebRows):
    """An object a line; blank lines do not count."""

    def __init__(self, path: Path):
        super().__init__(path, [path])
        self._entries, self._lines, self._count = array("q"), array("q"), 0
        offset = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    if self._count % STRIDE == 0:
                        self._entries.append(offset)
                        self._lines.append(number)
                    self._count += 1
                offset += len(line)
        if self._count:
            self._raw(0, 1)

    def __len__(self) -> int:
        return self._count

    def _raw(self, start: int, stop: int) -> list[tuple[str, Any, Any]]:
        rows: list[tuple[str, Any, Any]] = []
        if start >= stop:
            return rows
        entry = start // STRIDE
        row = entry * STRIDE
        with self.path.open("rb") as lines:
            lines.seek(self._entries[entry])
            for number, line in enumerate(lines, self._lines[entry]):
                if not line.strip():
                    continue
                if row >= start:
                    rows.append(self._parsed(line, f"{self.path}:{number}"))
                row += 1
                if row == stop:
                    break
        return rows

    @staticmethod
    def _parsed(line: bytes, where: str) -> tuple[str, Any, Any]:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{where}: is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}: must be an object with "image", and "text" or "captions"')
        return where, row.get("image"), row[_text_column(list(row), where)]


class ParquetRows(WebRows):
    """Parquet files one after the other, of which only the row groups in question are read."""

    def __init__(self, path: Path, files: Sequence[Path]):
        if importlib.util.find_spec("pyarrow") is None:
            raise ImportError(f"{path}: parquet needs pyarrow: `pip install pyarrow`")
        from pyarrow import lib, parquet, types

        super().__init__(path, files)
        self._groups: list[tuple[Path, int]] = []
        self._starts = [0]
        for file in files:
            try:
                opened = parquet.ParquetFile(file)
            except (lib.ArrowInvalid, OSError) as error:
                raise ValueError(f"{file}: is not parquet, or damaged ({error})") from error
            with opened:
                self._texts = _text_column(opened.schema_arrow.names, str(file))
                kind = opened.schema_arrow.field("image").type
                self.in_bytes = not (types.is_string(kind) or types.is_large_string(kind))
                for group in range(opened.metadata.num_row_groups):
                    self._groups.append((file, group))
                    self._starts.append(self._starts[-1] + opened.metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def _raw(self, start: int, stop: int) -> list[tuple[str, Any, Any]]:
        from pyarrow import parquet

        rows: list[tuple[str, Any, Any]] = []
        while start < stop:
            place = bisect_right(self._starts, start) - 1
            file, group = self._groups[place]
            end = min(stop, self._starts[place + 1])
            with parquet.ParquetFile(file) as opened:
                table = opened.read_row_group(group, columns=["image", self._texts])
            table = table.slice(start - self._starts[place], end - start)
            names = (f"{file}, row {number}" for number in range(start, end))
            rows += zip(names, table["image"].to_pylist(), table[self._texts].to_pylist())
            start = end
        return rows


class DatasetRows(WebRows):
    """What `datasets.Dataset.save_to_disk` wrote, read from where it lies."""

    def __init__(self, path: Path):
        if importlib.util.find_spec("datasets") is None:
            raise ImportError(f"{path}: needs datasets: `pip install datasets`, or convert it to .parquet")
        import datasets

        super().__init__(path, sorted(path.glob("*.arrow")))
        table = datasets.load_from_disk(str(path))
        self._texts = _text_column(table.column_names, str(path))
        kind = table.features["image"]
        if isinstance(kind, datasets.Image):  # decoded here, where a broken one can be told from the others
            table = table.cast_column("image", datasets.Image(decode=False))
        self.in_bytes = getattr(kind, "dtype", None) != "string"
        self._table = table.select_columns(["image", self._texts])

    def __len__(self) -> int:
        return len(self._table)

    def _raw(self, start: int, stop: int) -> list[tuple[str, Any, Any]]:
        part = self._table[start:stop]
        names = (f"{self.path}, row {number}" for number in range(start, stop))
        return list(zip(names, part["image"], part[self._texts]))
