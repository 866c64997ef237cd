"""Reading checkpoints of strangers: tensors come out, and no code of theirs runs."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from hfvlm.conversion import torchscript


#: How transformers names the weights in a folder, best first.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
WRAPPERS = ("model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder holds.

    Args:
        tensors: by key, unwrapped.
        config: `config.json` of a transformers folder, else None.
        generation: `generation_config.json` of a transformers folder, else None.
        folder: where the files that belong to it (vocabulary, image settings) lie, if anywhere.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None
    folder: Path | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a weights file, or a folder in the transformers layout (sharded or not).

    Args:
        path: a `.pth`, `.pt`, `.bin`, `.safetensors` or `.npz` file, or a folder.

    Raises:
        FileNotFoundError: there is nothing at `path`, or no weights in the folder, or a shard is missing.
        ValueError: the file is empty, damaged, holds no tensors, or holds more than tensors (a pickle that would
            run code is refused, and does not run).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.is_file():
        return Checkpoint(unwrap(_read_file(path), path), folder=path.parent)
    config = _read_json(path / "config.json") or {}
    return Checkpoint(
        unwrap(_read_weights(path), path),
        config=config if "model_type" in config else None,
        generation=_read_json(path / "generation_config.json"),
        folder=path,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _read_weights(folder: Path) -> Any:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_shards(folder / name) if name.endswith(".json") else _read_file(folder / name)
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"folder {folder} has no weights: expected {WEIGHTS[0]}, {WEIGHTS[2]} or one *.pth")
    if len(files) > 1:
        raise ValueError(f"folder {folder} has several weights files, name one: {', '.join(f.name for f in files)}")
    return _read_file(files[0])


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
        shard = index.parent / name
        if shard.resolve().parent != index.parent.resolve() or not shard.is_file():
            raise FileNotFoundError(f"{index} names the shard {name!r}, which is not in the folder")
        tensors.update(_read_file(shard))
    return tensors


def _read_file(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise ValueError(f"checkpoint {path} is empty (0 bytes): download it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            return _read_arrays(path)
        if torchscript.is_archive(path):
            return torchscript.read_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} is refused: it holds more than tensors (or is damaged), and reading that could run "
            f"code of its author. If you trust it, save its tensors alone and convert those. ({_refused(error)})"
        ) from error
    except OSError:
        raise
    except Exception as error:  # damaged bytes can make the readers fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint: {reason}") from error


def _read_arrays(path: Path) -> dict[str, torch.Tensor]:
    """NumPy's arrays; an array of Python objects, which would be unpickled, is refused."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _refused(error: pickle.UnpicklingError) -> str:
    """The line of torch's explanation that names what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0] if lines else "pickle")


def unwrap(loaded: Any, path: str | Path = "checkpoint") -> dict[str, torch.Tensor]:
    """The tensors in what a training script saved: out of `{"model": ...}` and the like, without "module.".

    Raises:
        ValueError: there are no tensors, or entries among them that are none.
    """
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no tensors by name; it is not a checkpoint of weights")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{path} holds entries beside its tensors that are none: {', '.join(others[:20])}")
    wrapped = all(key.startswith("module.") for key in loaded)
    return {key.removeprefix("module.") if wrapped else key: value for key, value in loaded.items()}
