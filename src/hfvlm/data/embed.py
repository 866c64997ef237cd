"""Embeddings with their ids in one file: safetensors or parquet; and the texts to embed, read from a file."""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from hfvlm.data.files import replacing


#: the header of a safetensors file, which the ids go into, may be as large as this
HEADER_BYTES = 90 * 10**6

SUFFIXES = (".safetensors", ".parquet")


@dataclass
class Embeddings:
    """Embeddings of one kind.

    Args:
        ids: what each is of.
        vectors: `[n, dim]`, of length 1, in parts.
    """

    ids: list[str] = field(default_factory=list)
    vectors: list[torch.Tensor] = field(default_factory=list)

    def joined(self) -> torch.Tensor:
        """`[n, dim]`."""
        return torch.cat(self.vectors)


def check_output(path: Path) -> None:
    """Refuses a file that cannot be written, before anything is embedded.

    Raises:
        ValueError: of another kind than `SUFFIXES`, or in a folder that is not there.
        ImportError: parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no such folder, {path.parent}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f"{path}: parquet needs pyarrow: `pip install pyarrow`, or write .safetensors")


def write_embeddings(path: Path, images: Embeddings, texts: Embeddings, about: dict[str, str]) -> None:
    r"""Writes embeddings at once: a kill half-way leaves the old file.

    safetensors: `image_embeds` and `text_embeds` `[n, dim]`, those that there are; the header's `image_ids` and
    `text_ids` are JSON lists. parquet: columns `id`, `kind` ("image" or "text") and `embedding`. In both, bytes of a
    file name that are not UTF-8 stand as `\udcff`: UTF-8 text cannot hold them.

    Args:
        about: what the file says of itself, such as the model.

    Raises:
        ValueError: the ids do not fit a safetensors header.
        OSError: nothing can be written there.
    """
    kinds = {
        kind: Embeddings([_printable(name) for name in part.ids], part.vectors)
        for kind, part in (("image", images), ("text", texts))
        if part.ids
    }
    about = {name: _printable(value) for name, value in about.items()}
    if path.suffix == ".parquet":
        _write_parquet(path, kinds, about)
        return
    ids = {f"{kind}_ids": json.dumps(part.ids) for kind, part in kinds.items()}
    if sum(map(len, ids.values())) > HEADER_BYTES:
        raise ValueError(f"{path}: the ids of so many embeddings do not fit a safetensors header: write .parquet")
    with replacing(path) as new:
        save_file({f"{kind}_embeds": part.joined() for kind, part in kinds.items()}, new, {**about, **ids})


def _printable(text: str) -> str:
    """As a terminal shows it: Python keeps bytes of a file name that are not UTF-8 as characters that UTF-8 lacks."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _write_parquet(path: Path, kinds: dict[str, Embeddings], about: dict[str, str]) -> None:
    import pyarrow
    from pyarrow import parquet

    vectors = torch.cat([part.joined() for part in kinds.values()])
    columns = {
        "id": pyarrow.array([name for part in kinds.values() for name in part.ids], pyarrow.string()),
        "kind": pyarrow.array([kind for kind, part in kinds.items() for _ in part.ids], pyarrow.string()),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(vectors.reshape(-1).numpy(), vectors.shape[1]),
    }
    with replacing(path) as new:
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), new)


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Ids and texts of a file: of `.txt` every line that is not blank, its own id; of `.jsonl` a string a line, or an
    object with "text", and perhaps "id".

    Raises:
        ValueError: of another kind, without a text, or with a line that is none, by number.
        FileNotFoundError: there is no such file.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: must end in .txt or .jsonl")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    read = _line if path.suffix == ".txt" else _json_line
    try:
        with path.open(encoding="utf-8-sig") as lines:  # str.splitlines would cut at U+2028 and others inside a text
            rows = [read(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    if not rows:
        raise ValueError(f"{path}: has no text")
    return [name for name, _ in rows], [text for _, text in rows]


def _line(line: str, where: str) -> tuple[str, str]:
    return line.strip(), line.strip()


def _json_line(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error
    text = row.get("text") if isinstance(row, dict) else row
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: must be a string, or an object with a "text" that is one')
    name = row.get("id", text) if isinstance(row, dict) else text
    return str(name), text
