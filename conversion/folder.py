"""Filling a model with converted weights, checking it, and writing it down whole or not at all."""

import functools
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hfvlm.conversion.rules import Rule, apply


def fill(model: PreTrainedModel, rules: Iterable[Rule], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Copies tensors into a model, which takes on their dtype (the widest of them if they differ).

    Returns:
        the source keys that were left out, each with the reason.

    Raises:
        KeyMismatch: lists the keys that are missing, unknown, wrongly shaped or unequal.
    """
    own = model.state_dict()
    converted = apply(rules, tensors, {key: value.shape for key, value in own.items()})
    kinds = [value.dtype for value in converted.tensors.values() if value.is_floating_point()]
    model.to(functools.reduce(torch.promote_types, kinds))
    model.load_state_dict({**model.state_dict(), **converted.tensors})
    return converted.dropped


#: Generation settings that a model has from its own configuration.
OWN_GENERATION = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"}


def carry_generation(settings: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Gives a model the generation settings (beams, lengths, ...) of the one that it was converted from.

    Args:
        settings: as in `generation_config.json`; special tokens stay the model's own.
    """
    unlike = OWN_GENERATION | {"transformers_version", "_from_model_config"}
    model.generation_config.update(**{name: value for name, value in settings.items() if name not in unlike})


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuses an output that holds NaN or infinity.

    Raises:
        ValueError: names the output.
    """
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the converted model's {name} are not finite: the checkpoint's weights are damaged")


def check_output(output: str | Path) -> None:
    """Refuses an output folder that would mix with what is in it, before the work starts.

    Raises:
        FileExistsError: it is a file, or a folder that is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"output {output} exists and is not an empty folder: name a new one")


@contextmanager
def new_folder(output: str | Path) -> Iterator[Path]:
    """A folder to write to, which becomes `output` once the block is done; if it fails, nothing is left behind."""
    output = Path(output)
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.parent / f".{output.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        yield draft
        if output.exists():
            output.rmdir()
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
