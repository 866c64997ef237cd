"""Keeping an index up to date with its folder: only files that are new or changed are embedded."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hfvlm.data.fingerprint import fingerprint
from hfvlm.data.index import ImageIndex, Stamp, check_index_file, merged
from hfvlm.data.sheet import is_sheet
from hfvlm.embedder import Embedder
from hfvlm.images import ImageError, images_in


#: where a folder's index lies, in the folder
INDEX_PATH = Path(".hfvlm") / "index.safetensors"


def update_index(
    folder: str | os.PathLike,
    embedder: Embedder,
    model: str,
    path: str | os.PathLike | None = None,
    rebuild: bool = False,
    flush_seconds: float = 30.0,
    dtype: torch.dtype = torch.float16,
    on_error: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ImageIndex:
    """The index of the images in a folder, read from disk and brought up to date there.

    A file counts as changed by its size or time of writing. What is embedded is written from time to time, and also
    if the work is interrupted: the next call goes on from there. Files that hold no image are kept in mind too, and
    not opened again until they change. If nothing changed nothing is written: a read-only folder can be searched.

    Args:
        folder: searched for image suffixes, the folders in it too. Contact sheets of earlier searches are passed over.
        embedder: of the model that made the index, or makes it now.
        model: what to call that model in the index.
        path: of the index; None: `INDEX_PATH` in the folder.
        rebuild: whatever index is there, start anew. A file elsewhere than at `INDEX_PATH` must be an index.
        flush_seconds: the time between writes.
        dtype: of the embeddings on disk. float16 changes a similarity by less than 0.001.
        on_error: is told of each image that is left out, and each folder that cannot be read.
        on_progress: is told how many images are embedded, of how many.

    Raises:
        NotADirectoryError: `folder` is none.
        ImageIndexError: `path` is no index, a damaged one or another model's, or holds no image that can be read.
        OSError: the index cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is not a folder")
    path = folder / INDEX_PATH if path is None else Path(path)
    if path.is_file() and path != folder / INDEX_PATH:  # what lies there is ours, even if nothing of it can be read
        check_index_file(path)
    index = ImageIndex(fingerprint(embedder.model, embedder.processor.image_processor), model)
    if path.is_file() and not rebuild:
        known = ImageIndex.load(path)
        known.check_model(index.fingerprint, model, path)
        index = known
    report = on_error or (lambda message: None)
    current = _stamps(folder, report)
    broken = {name: known for name, known in index.broken.items() if current.get(name) == known[0]}
    for name, (_, reason) in broken.items():
        report(f"{folder / name}: {reason}")
    todo = [name for name, stamp in current.items() if name not in broken and index.files.get(name) != stamp]
    for name in [name for name in todo if name.lower().endswith(".png") and is_sheet(folder / name)]:
        todo.remove(name)
        del current[name]
    if not todo and len(current) == len(index) + len(broken):
        return index
    _check_writable(path)
    new: dict[str, torch.Tensor] = {}

    def flush() -> ImageIndex:
        after = merged(index, current, new, dtype, broken)
        if rebuild or (after.files, after.broken) != (index.files, index.broken):
            after.save(path)
        return after

    def skip(position: int, error: ImageError) -> None:
        report(str(error))
        name = todo[position]
        if _is_of_the_file(error):
            broken[name] = current[name], str(error).removeprefix(f"{folder / name}: ")

    written = time.monotonic()
    done = 0
    try:
        for positions, embeds in embedder.image_batches((folder / name for name in todo), skip):
            new.update((todo[position], embed) for position, embed in zip(positions, embeds, strict=True))
            done = positions[-1] + 1
            if on_progress is not None:
                on_progress(done, len(todo))
            if time.monotonic() - written > flush_seconds:
                flush()
                written = time.monotonic()
    except BaseException:  # an interrupt, too: what is done is kept
        if new:
            flush()
        raise
    if on_progress is not None and done < len(todo):  # the last images were broken
        on_progress(len(todo), len(todo))
    return flush()


def _stamps(folder: Path, report: Callable[[str], None]) -> dict[str, Stamp]:
    """The images in a folder, by their path in it with forward slashes."""
    problems: list[str] = []
    stamps = {}
    for name in images_in(folder, problems):
        try:
            stamps[Path(name).relative_to(folder).as_posix()] = Stamp.of(name)
        except OSError as error:  # gone since it was listed, or a link to nothing
            problems.append(f"{name}: cannot be read ({error.strerror})")
    for problem in problems:
        report(problem)
    return stamps


def _is_of_the_file(error: ImageError) -> bool:
    """Whether another try finds the same: neither the system (permissions, a disk) nor its memory is at fault."""
    cause = error.__cause__
    return getattr(cause, "errno", None) is None and not isinstance(cause, MemoryError)


def _check_writable(path: Path) -> None:
    """Refuses early, before anything is embedded."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(
            f"{path}: the index cannot be written here ({error.strerror or error}); --index PATH keeps it elsewhere"
        ) from error
