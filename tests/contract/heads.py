"""What the contract asks of a head: what it can do, by its structure, and a batch that fits it."""

import inspect

import torch
from tiny import HEADS
from transformers import GenerationMixin

from hfvlm.generation import ImageGenerationMixin
from hfvlm.registry import find, load


def head_class(model_type: str, auto_class: str) -> type:
    """The model class that is registered."""
    return load(find(model_type).heads[auto_class])


def _heads(can) -> list[tuple[str, str]]:
    return [head for head in HEADS if can(head_class(*head))]


#: heads that learn from labels, that write text, and that write it with an encoder-decoder
WITH_LOSS = _heads(lambda cls: "labels" in inspect.signature(cls.forward).parameters)
GENERATIVE = _heads(lambda cls: issubclass(cls, GenerationMixin))
ENCODER_DECODERS = _heads(lambda cls: issubclass(cls, ImageGenerationMixin))
assert WITH_LOSS and GENERATIVE and ENCODER_DECODERS, "the filters above must not empty the suite"


def tiny_batch(
    model: torch.nn.Module, images: int = 2, texts: int = 1, length: int = 12, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random pixels and ids that a tiny model takes: `texts` texts an image, all of `length` tokens.

    12 tokens are more than the few queries for which fp32 attention on CPU leaves sdpa (`CPU_MATMUL_QUERIES`).
    """
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(seed)
    size = (images, vision.num_channels, vision.image_size, vision.image_size)
    input_ids = torch.randint(6, text.vocab_size, (images * texts, length), generator=generator)
    input_ids[:, 0] = text.bos_token_id
    return {
        "pixel_values": torch.randn(size, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch, to be learned: every token but the start."""
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    return {**batch, "labels": labels}


def pad(batch: dict[str, torch.Tensor], amount: int, side: str, pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """The batch with `amount` padding tokens on one side of every text."""
    width = (amount, 0) if side == "left" else (0, amount)
    return {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], width, value=pad_token_id),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], width),
    }


def tensors(outputs) -> dict[str, torch.Tensor]:
    """The plain tensors of a ModelOutput."""
    return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
