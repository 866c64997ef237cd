"""A folder of parquet shards that several processes fill: each shard whole or not there, all made alike."""

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hfvlm.data.files import replacing


#: in a shard's metadata, under `_KEY`: what made it, and what came of it
FORMAT = "hfvlm-bootstrap-1"
_KEY = b"hfvlm"


class ShardError(ValueError):
    """A folder that shards cannot be added to; the message says why, and the way out."""


@dataclass
class Counts:
    """What came of some rows.

    Args:
        images: that were read.
        skipped: that could not be read.
        web, synthetic: texts that were judged.
        web_kept, synthetic_kept: those of them that match.
    """

    images: int = 0
    skipped: int = 0
    web: int = 0
    web_kept: int = 0
    synthetic: int = 0
    synthetic_kept: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(asdict(self).values(), asdict(other).values())))


@dataclass
class Kept:
    """The texts of a shard that match their images, by row of the input, the web's before the synthetic.

    Args:
        images: a path, URL or file's bytes each.
        sources: "web" or "synthetic".
        scores: the probability of a match.
        rows: of the input.
        counts: of the whole shard.
    """

    images: list[str | bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class ShardFolder:
    """Shards `shard-00000.parquet`, ... that `datasets.load_dataset(folder)` reads.

    Columns: `image` (a path; or, where the input holds image files, that file as `datasets.Image` keeps it), `text`,
    `source`, `score` and `row`. Each shard says in its metadata what made it.

    Args:
        folder: is made if it is not there.
        settings: all that the rows depend on, by the name that errors call it.
        in_bytes: whether images are files rather than paths.

    Raises:
        ShardError: other settings made a shard that is there, or a parquet file there is no shard.
        ImportError: pyarrow is missing.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any], in_bytes: bool = False):
        if importlib.util.find_spec("pyarrow") is None:
            raise ImportError(f"{os.fspath(folder)}: parquet shards need pyarrow: `pip install pyarrow`")
        self.folder, self.in_bytes = Path(folder), in_bytes
        self.settings = json.loads(json.dumps(dict(settings)))
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("[!.]*.parquet")):
            self._about(path)

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard-{shard:05d}.parquet"

    def counts(self, shard: int) -> Counts | None:
        """What came of a shard; None if it is not there.

        Raises:
            ShardError: as at first.
        """
        path = self.path(shard)
        return Counts(**self._about(path)["counts"]) if path.exists() else None

    def _about(self, path: Path) -> dict[str, Any]:
        from pyarrow import lib, parquet

        way_out = "choose another --output, or delete it"
        try:
            about = json.loads((parquet.read_schema(path).metadata or {})[_KEY])
        except (lib.ArrowInvalid, KeyError, ValueError) as error:
            raise ShardError(f"{path}: is not a shard of a bootstrap: {way_out}") from error
        if about.get("format") != FORMAT:
            raise ShardError(f"{path}: is a shard of another version, {about.get('format')}: {way_out}")
        theirs = about["settings"]
        names = sorted(name for name in theirs.keys() | self.settings if theirs.get(name) != self.settings.get(name))
        if names:
            raise ShardError(f"{path}: was made with another {', another '.join(names)}: {way_out}")
        return about

    def write(self, shard: int, kept: Kept) -> None:
        """Writes a shard at once: a kill half-way leaves none.

        Raises:
            OSError: nothing can be written there.
        """
        import pyarrow
        from pyarrow import parquet

        about = {"format": FORMAT, "settings": self.settings, "counts": asdict(kept.counts)}
        metadata = {_KEY: json.dumps(about)}
        if self.in_bytes:
            metadata[b"huggingface"] = json.dumps({"info": {"features": _FEATURES}})
        columns = {
            "image": self._images(kept.images),
            "text": pyarrow.array(kept.texts, pyarrow.string()),
            "source": pyarrow.array(kept.sources, pyarrow.string()),
            "score": pyarrow.array(kept.scores, pyarrow.float32()),
            "row": pyarrow.array(kept.rows, pyarrow.int64()),
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        with replacing(self.path(shard)) as new, parquet.ParquetWriter(new, table.schema) as writer:
            if len(table):  # `datasets` reads a file without a row group, but not an empty row group
                writer.write_table(table)

    def _images(self, images: Sequence[str | bytes]) -> Any:
        import pyarrow

        if not self.in_bytes:
            return pyarrow.array(images, pyarrow.string())
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        files = [{"path": image} if isinstance(image, str) else {"bytes": image} for image in images]
        return pyarrow.array(files, kind)


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


#: what the columns are to `datasets`, which would not know a struct of bytes for an image
_FEATURES = {
    "image": {"_type": "Image"},
    **{"text": _value("string"), "source": _value("string"), "score": _value("float32"), "row": _value("int64")},
}
