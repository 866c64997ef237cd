"""From the name of a model on the command line to the model, on the device and in the precision that fit."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    import torch

    from hfvlm.embedder import Embedder


class Dtype(str, Enum):
    """Values of --dtype."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


#: what a model that is not named is called
BUILT_IN = "the built-in model"

#: on a CPU larger batches are slower: their activations outgrow its caches and the memory that is used again
BATCH_SIZE = 8

#: options of the commands that embed images and texts
TwoTowerModel = Annotated[
    str | None,
    typer.Option("--model", help="Folder or Hub name of a two-tower model (CLIP, ...); the built-in one if left out."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images or texts at a time; more than 8 pays on a GPU only.")]
Precision = Annotated[Dtype, typer.Option("--dtype", help="Precision; auto: bf16 where it is computed natively.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]


def choose_device(dtype: str) -> tuple["torch.device", "torch.dtype"]:
    """The device to run on and the precision there; also quiets transformers, which speaks to programmers."""
    import torch
    from transformers.utils import logging

    from hfvlm.pipelines.dtype import choose_dtype

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return device, choose_dtype(device, dtype)


def check_model_name(model: str | None) -> None:
    """Tells a path that leads nowhere, or to half of a model, from a name on the Hub.

    Raises:
        ValueError: there is no such folder, or it lacks the processor.
    """
    if model is None:
        return
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"--model {model}: is a file, not the folder of a model")
        if folder.is_absolute() or model.startswith((".", "~")) or model.endswith("/") or model.count("/") > 1:
            raise ValueError(f"no such folder: {model}")
    elif not (folder / "config.json").is_file():
        raise ValueError(f"{model} has no config.json: it is not the folder of a model")
    elif not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise ValueError(
            f"{model} has no processor (no processor_config.json): convert or save it again with its processor "
            "(conversion/convert_clip.py --vocab FILE)"
        )


def load_embedder(model: str | None, dtype: str, trust_remote_code: bool, batch_size: int) -> "Embedder":
    """A two-tower model with its processor; None: the built-in one.

    Raises:
        ValueError: there is no model of that name, or it embeds no images and texts.
    """
    loaded, processor = load_two_towers(model, dtype, trust_remote_code)
    from hfvlm.embedder import Embedder

    try:
        return Embedder(loaded, processor, batch_size)
    except TypeError as error:
        raise ValueError(f"--model {model or BUILT_IN}: {error}") from error


def load_two_towers(model: str | None, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The model and the processor of `load_embedder` by themselves. Where a head was saved that also judges pairs, it
    is the retrieval head, without its teacher: nothing is trained here.

    Raises:
        ValueError: there is no model of that name, or it lacks weights of the two towers.
    """
    check_model_name(model)
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from hfvlm.auto import AutoModelForImageTextRetrieval
    from hfvlm.builtin import builtin_model
    from hfvlm.pipelines.loading import load_whole, unreadable

    model = str(builtin_model("image-text-retrieval")) if model is None else model
    device, precision = choose_device(dtype)
    auto, options = AutoModel, {"dtype": precision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(unreadable(model, error)) from error
    if _judges(config):
        auto, options = AutoModelForImageTextRetrieval, {**options, "momentum": None}
    loaded = load_whole(auto, model, **options).to(device)
    return loaded, AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)


def _judges(config: Any) -> bool:
    """Whether the head that was saved with this config judges pairs of images and texts."""
    from hfvlm.registry import ARCHITECTURES, load

    row = ARCHITECTURES.get(config.model_type)
    if row is None or "AutoModelForImageTextRetrieval" not in row.heads:
        return False
    saved = [path for path in row.classes.values() if path.split(":")[1] in (config.architectures or ())]
    return any(hasattr(load(path), "match") for path in saved)
