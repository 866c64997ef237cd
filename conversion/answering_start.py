"""What question answering starts from, of an hfvlm folder of a pretraining head."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig

from hfvlm.conversion.checkpoint import read_checkpoint
from hfvlm.conversion.command import Conversion, Source, model_type_of
from hfvlm.registry import find, load


PRETRAINING, ANSWERING = "AutoModelForPreTraining", "AutoModelForVisualQuestionAnswering"


def is_start(checkpoint: Source, config_class: type[PreTrainedConfig], head: str | None, wishes: Iterable) -> bool:
    """Whether `answering_start` is asked for: the head of an hfvlm folder of the architecture.

    Raises:
        ValueError: with sizes or a vocabulary, which such a folder has.
    """
    if head is None or not isinstance(checkpoint, (str, Path)):
        return False
    if model_type_of(Path(checkpoint)) != config_class.model_type:
        return False
    if any(wish is not None for wish in wishes):
        raise ValueError("an hfvlm folder has its sizes and vocabulary: leave --variant, --config, ... out")
    return True


def answering_start(path: str | Path) -> Conversion:
    """The head that answers: its decoder starts as the layers that fuse. It writes with the self-attention that they
    write with, or, where they write nothing, with the one that they read with.

    Args:
        path: an hfvlm folder of a pretraining head.

    Raises:
        ValueError: the folder is of another head, or lacks weights of it.
    """
    config = AutoConfig.from_pretrained(path)
    heads = {name: load(cls) for name, cls in find(config.model_type).heads.items()}
    named = " or ".join(config.architectures or ["no class"])
    if named != heads[PRETRAINING].__name__:
        raise ValueError(f"head 'answering' is made of a {heads[PRETRAINING].__name__} folder, {path} is of {named}")
    state = read_checkpoint(path).tensors
    with torch.device("meta"):
        wanted = heads[ANSWERING](config).state_dict()
    sources = {name: _source(name, state, config.text_config.fusion_layer) for name in wanted}
    found = {name: state[source] for name, source in sources.items() if source in state}
    # a decoder reads the question's states, where the layers that fuse read an image's, which may have another width
    other = {name: "of another width, start fresh" for name in found if found[name].shape != wanted[name].shape}
    # both towers read the same weights, and the model keeps the tensors that it is given
    chosen = {name: tensor.clone() for name, tensor in found.items() if name not in other}
    model, loaded = heads[ANSWERING].from_pretrained(None, config=config, state_dict=chosen, output_loading_info=True)
    if lacking := sorted(loaded["missing_keys"] - other.keys()):
        raise ValueError(f"{path} lacks {len(lacking)} weights, such as {sources[lacking[0]]}")
    processor = AutoProcessor.from_pretrained(path) if (Path(path) / "tokenizer.json").is_file() else None
    return Conversion(model.eval(), processor, other)


def _source(name: str, state: Mapping[str, torch.Tensor], first: int) -> str:
    """Which of the pretraining head's weights a weight starts as; `first` is the first layer that fuses."""
    own = name.removeprefix("teacher_")
    if not own.startswith("text_decoder."):
        return name
    source = f"{name[: len(name) - len(own)]}text_model.{own.removeprefix('text_decoder.')}"
    source = re.sub(r"\.layers\.(\d+)\.", lambda layer: f".layers.{int(layer[1]) + first}.", source)
    return source if source in state else source.replace(".causal_attention", ".attention")
