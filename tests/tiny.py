"""Tiny random models and processors, one a registered architecture, for every test that needs one.

The model is the architecture's own `tiny` variant; the processor gets the stock image processor that the architecture
uses and a vocabulary of the size that its text tower has.
"""

import inspect

import torch
import transformers
from torch import nn
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from hfvlm.registry import ARCHITECTURES, find, load


WORDS = (
    "a the dog cat man woman boy girl two three red blue black white brown green runs sits stands jumps plays in on "
    "with of and is are street grass water snow beach ball frisbee bike tree sky house field picture photo near big "
    "small young old wearing shirt"
).split()


def sub_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The configurations of a model's parts, by field."""
    return {name: getattr(config, name) for name in config.sub_configs}


def tiny_config(model_type: str, **overrides) -> PreTrainedConfig:
    """The architecture's `tiny` configuration without dropout, so that two runs are alike.

    Args:
        overrides: as `variant` of the config takes them; dropout that they name stays.
    """
    config = load(find(model_type).config).variant("tiny", **overrides)
    parts = {"": config, **sub_configs(config)}
    for field, part in parts.items():
        named = overrides.get(field) if field else overrides
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float) and not (isinstance(named, dict) and name in named):
                setattr(part, name, 0.0)
    return config


def tiny_model(model_type: str, auto_class: str, seed: int = 0, **overrides) -> nn.Module:
    """A random model of one head, in evaluation mode; see `randomise`."""
    torch.manual_seed(seed)
    model = load(find(model_type).heads[auto_class])(tiny_config(model_type, **overrides))
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights large enough that outputs differ between inputs, and that no norm is the identity.

    Single numbers (a temperature) keep the value that the model starts with.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:  # a convolution: the same scale whatever it reads
            parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5)
        elif parameter.ndim > 1:
            parameter.normal_(0, 0.15)
        elif id(parameter) in norms and name.endswith("weight"):
            parameter.normal_(1, 0.1)
        elif parameter.ndim == 1 and parameter.numel() > 1:
            parameter.normal_(0, 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def tiny_tokenizer(size: int = 64) -> BertTokenizer:
    """A BERT tokenizer of `size` words: six special tokens ([DEC] is 5), `WORDS`, and fillers."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *WORDS]
    words += [f"word{i}" for i in range(size - len(words))]
    return BertTokenizer(
        vocab={word: i for i, word in enumerate(words[:size])}, bos_token="[DEC]", model_max_length=40
    )


def tiny_clip_tokenizer(size: int = 64) -> CLIPTokenizer:
    """A CLIP tokenizer of `size` tokens: "!" is 0, letters, a few merges, then start and end of text."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = [("t", "h"), ("th", "e</w>"), ("d", "o"), ("do", "g</w>"), ("i", "n"), ("r", "e"), ("re", "d</w>")]
    merges += [("c", "a"), ("ca", "t</w>")]
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += [f"filler{i}" for i in range(size - 2 - len(tokens))]
    tokens = [*tokens[: size - 2], "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [(a, b) for a, b in merges if a + b in vocab]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=40)


#: text tower -> the tokenizer that its vocabulary is for
TOKENIZERS = {"hfvlm_bert_tower": tiny_tokenizer, "hfvlm_clip_text_tower": tiny_clip_tokenizer}
#: stock image processor by architecture; CLIP's where none is named
IMAGE_PROCESSORS = {
    "hfvlm_albef": "BlipImageProcessorPil",
    "hfvlm_align": "EfficientNetImageProcessorPil",
    "hfvlm_blip": "BlipImageProcessorPil",
    "hfvlm_vit": "ViTImageProcessorPil",
}


def tiny_image_processor(model_type: str, size: int):
    """The architecture's stock image processor, for images of `size` pixels a side."""
    cls = getattr(transformers, IMAGE_PROCESSORS.get(model_type, "CLIPImageProcessorPil"))
    square = {"height": size, "width": size}
    sizes = {"size": {"shortest_edge": size} if "shortest_edge" in cls.size else square}
    if getattr(cls, "crop_size", None):
        sizes["crop_size"] = square
    return cls(**sizes)


def tiny_text_tokenizer(config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """A tokenizer for the text tower of a tiny model's config."""
    return TOKENIZERS[config.text_config.model_type](config.text_config.vocab_size)


def tiny_processor(model_type: str, **kwargs):
    """The architecture's processor for its tiny model."""
    row = find(model_type)
    config, cls = tiny_config(model_type), load(row.processor)
    parts = {"image_processor": tiny_image_processor(row.model_type, config.vision_config.image_size)}
    if "tokenizer" in inspect.signature(cls.__init__).parameters:
        parts["tokenizer"] = tiny_text_tokenizer(config)
    return cls(**parts, **kwargs)


#: every (model_type, Auto class) that is registered
HEADS = [(row.model_type, auto) for row in ARCHITECTURES.values() for auto in row.heads]
