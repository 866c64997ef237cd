"""The tensors of a TorchScript archive, without running any of it.

Such an archive (what `torch.jit.save` writes) is a zip: `data.pkl` says which module holds which tensor, `data/N` are
the numbers, and `code/` is the program, which is not read here. `torch.load(weights_only=True)` refuses archives as a
whole and `torch.jit.load` compiles the program; this reads `data.pkl` with an unpickler that knows modules as plain
records, tensors, and nothing else.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
#: makers of typed lists: the list itself is what counts
LISTS = {"build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag"}


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: what `torch.save` writes is a zip too, but has no program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())


def read_archive(path: Path) -> dict[str, torch.Tensor]:
    """The archive's tensors by name, as its `state_dict()` would have them, and tensors that are plain attributes.

    Raises:
        pickle.UnpicklingError: the description of the modules asks for anything but modules and tensors.
        KeyError, RuntimeError, zipfile.BadZipFile: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("constants.pkl")).split("/")[0]
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise RuntimeError("its numbers are in big-endian order")
        with archive.open(f"{root}/data.pkl") as description:
            module = _unpickler(archive, root, description).load()
    tensors: dict[str, torch.Tensor] = {}
    _collect(module, "", tensors)
    return tensors


def _collect(module: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    for name, value in getattr(module, "fields", {}).items():
        if isinstance(value, torch.Tensor):
            tensors[prefix + name] = value
        else:
            _collect(value, f"{prefix}{name}.", tensors)


def _unpickler(archive: zipfile.ZipFile, root: str, description: Any) -> pickle.Unpickler:
    """An unpickler that can call nothing but what is defined here.

    What it hands out is made anew for each archive: a pickle can set attributes of the objects that it gets.
    """

    class Module:
        """A script module: the attributes it had."""

        fields: dict[str, Any] = {}

        def __setstate__(self, state: Any) -> None:
            self.fields = dict(state)

    def tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *others: Any) -> torch.Tensor:
        return storage.as_strided(size, stride, offset).clone()  # torch refuses what lies outside of the storage

    def listed(items: Any, *others: Any) -> Any:
        return items

    class Storages(dict):
        """Storages by number, each read once."""

        def __missing__(self, key: tuple[str, str]) -> torch.Tensor:
            kind, number = key
            data = bytearray(archive.read(f"{root}/data/{number}"))
            dtype = STORAGES[kind]
            self[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            return self[key]

    storages = Storages()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch._utils" and name == "_rebuild_tensor_v2":
                return tensor
            if module == "torch" and name in STORAGES:
                return name
            if module == "collections" and name == "OrderedDict":
                return collections.OrderedDict
            if module == "torch.jit._pickle" and name in LISTS:
                return listed
            if module.split(".")[0] == "__torch__":
                return Module
            raise pickle.UnpicklingError(f"the archive asks for {module}.{name}")

        def persistent_load(self, reference: Any) -> torch.Tensor:
            tag, kind, number, *_ = reference
            if tag != "storage" or kind not in STORAGES:
                raise pickle.UnpicklingError(f"the archive refers to {tag!r}, which is no storage of a known type")
            return storages[kind, number]

    return Unpickler(description)
