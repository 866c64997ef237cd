"""An index of images on disk: their embeddings, which files they are of, and which model made them.

It is one safetensors file: `embeddings` `[n, dim]`, and `files`, the bytes of a JSON list of `[path, size, mtime_ns]`
(a table can outgrow the header), to which the files that hold no image add the reason and no row. The header says the
model.
"""

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hfvlm.data.files import replacing
from hfvlm.nearest import check_search, nearest


FORMAT = "hfvlm-index-2"

#: bytes at the start of an index, of any version, in which it says that it is one
_HEAD = 65_536


class ImageIndexError(ValueError):
    """An index that cannot be used; the message says why, and the way out."""


def check_index_file(path: str | os.PathLike) -> None:
    """Refuses a file that is no index, of whatever version or damaged: it is not ours to read or to overwrite.

    Raises:
        ImageIndexError: it is another kind of file.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        if b'"hfvlm-index-' not in file.read(_HEAD):
            raise ImageIndexError(f"{os.fspath(path)}: is not an index; name another file with --index")


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was embedded: its size in bytes, and when it was written."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike) -> "Stamp":
        """Of a file on disk.

        Raises:
            OSError: it cannot be looked at.
        """
        status = os.stat(path)
        return cls(status.st_size, status.st_mtime_ns)


@dataclass
class ImageIndex:
    """Embeddings of the images in a folder.

    Args:
        fingerprint, model: of the model that made them, and what to call it.
        files: path in the folder -> stamp of the file; row `i` of the embeddings is of the `i`-th.
        embeddings: `[n, dim]`, of length 1, in float16 or float32.
        broken: path in the folder -> stamp of a file that holds no image, and what is wrong with it.
    """

    fingerprint: str
    model: str
    files: dict[str, Stamp] = field(default_factory=dict)
    embeddings: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    broken: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    _in_faiss: Any = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def paths(self) -> list[str]:
        """The files' paths in the folder, by row."""
        return list(self.files)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index at once: a kill half-way leaves the old one.

        Raises:
            OSError: nothing can be written there.
        """
        rows = [[name, stamp.size, stamp.mtime_ns] for name, stamp in self.files.items()]
        rows += [[name, stamp.size, stamp.mtime_ns, reason] for name, (stamp, reason) in self.broken.items()]
        table = np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8)
        tensors = {"embeddings": self.embeddings.contiguous(), "files": torch.from_numpy(table.copy())}
        with replacing(path) as new:
            save_file(tensors, new, {"format": FORMAT, "fingerprint": self.fingerprint, "model": self.model})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ImageIndex":
        """Reads an index.

        Raises:
            ImageIndexError: the file is damaged, or no index.
            FileNotFoundError: there is none.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{os.fspath(path)}: no index here")
        try:
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                if said.get("format") != FORMAT:
                    raise ImageIndexError(f"{os.fspath(path)}: is not an index of this version; use --rebuild")
                rows = json.loads(file.get_tensor("files").numpy().tobytes())
                embeddings = file.get_tensor("embeddings")
        except (SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, ImageIndexError):
                raise
            raise ImageIndexError(f"{os.fspath(path)}: is damaged ({error}); use --rebuild") from error
        files = {name: Stamp(size, time) for name, size, time, *reason in rows if not reason}
        broken = {name: (Stamp(size, time), *reason) for name, size, time, *reason in rows if reason}
        if embeddings.ndim != 2 or len(files) != len(embeddings):
            raise ImageIndexError(f"{os.fspath(path)}: is damaged (files and embeddings differ); use --rebuild")
        return cls(said["fingerprint"], said["model"], files, embeddings, broken)

    def check_model(self, fingerprint: str, model: str, path: str | os.PathLike) -> None:
        """Refuses to be used with another model than the one that made it.

        Raises:
            ImageIndexError: it is another; names both.
        """
        if self.fingerprint != fingerprint:
            raise ImageIndexError(
                f"{os.fspath(path)}: was made by another model, {self.model!r} ({self.fingerprint}), not by {model!r} "
                f"({fingerprint}), and their embeddings cannot be compared. Use --rebuild to make it anew, or "
                "--index PATH to keep one for each model"
            )

    def search(self, queries: torch.Tensor, top_k: int, faiss: Any | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The images nearest to each query, exactly.

        Args:
            queries: `[q, dim]`, of length 1.
            top_k: how many a query; at most `len(self)` come back.
            faiss: the faiss module to search with; None: a matrix product.

        Returns:
            cosine similarities and rows, both `[q, min(top_k, n)]`, best first.

        Raises:
            ImageIndexError: the index is empty, or a similarity is no number.
            ValueError: `top_k` below 1, or queries of another width.
        """
        if not len(self):
            raise ImageIndexError("the index holds no image: there is nothing to search")
        if faiss is None:
            scores, rows = nearest(queries, self.embeddings, top_k)
        else:
            check_search(queries, self.embeddings.shape, top_k)
            found = self._flat(faiss).search(queries.float().contiguous().numpy(), min(top_k, len(self)))
            scores, rows = map(torch.from_numpy, found)
        if (rows < 0).any() or not scores.isfinite().all():  # faiss has row -1 where it could compare nothing
            raise ImageIndexError("the queries or the index hold NaN: check the model, and use --rebuild")
        return scores, rows

    def _flat(self, faiss: Any) -> Any:
        """The embeddings in faiss, kept for the next search."""
        if self._in_faiss is None:
            self._in_faiss = faiss.IndexFlatIP(self.embeddings.shape[1])
            for rows in self.embeddings.split(65_536):
                self._in_faiss.add(rows.float().contiguous().numpy())
        return self._in_faiss


def find_faiss() -> Any | None:
    """The faiss module, if it is installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def merged(
    index: ImageIndex,
    current: dict[str, Stamp],
    new: dict[str, torch.Tensor],
    dtype: torch.dtype,
    broken: dict[str, tuple[Stamp, str]],
) -> ImageIndex:
    """The index of what a folder holds now, as far as it is embedded.

    Args:
        index: as it was; of its rows those stay whose file is the same.
        current: path -> stamp of each file in the folder.
        new: path -> embedding `[dim]` of files that are new or changed.
        dtype: of the embeddings.
        broken: files that hold no image, as `ImageIndex` has them.
    """
    rows = {name: row for row, (name, stamp) in enumerate(index.files.items()) if current.get(name) == stamp}
    names = [name for name in current if name in new or name in rows]
    kept = index.embeddings[[rows[name] for name in names if name not in new]].to(dtype) if rows else None
    width = next((vector.shape[0] for vector in new.values()), index.embeddings.shape[1])
    embeddings = torch.empty(len(names), width, dtype=dtype)
    fresh = torch.tensor([name in new for name in names], dtype=torch.bool)
    if new:
        embeddings[fresh] = torch.stack([new[name] for name in names if name in new]).to(dtype)
    if kept is not None:
        embeddings[~fresh] = kept
    return ImageIndex(index.fingerprint, index.model, {name: current[name] for name in names}, embeddings, broken)
