"""What the contract asks of a head: what it can do, by its structure, and a batch that fits it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import HEADS, tiny_config, tiny_model
from transformers import GenerationMixin, PreTrainedConfig

from hfvlm.generation import ImageGenerationMixin, SharedMemoryMixin
from hfvlm.registry import find, load


#: a tiny tower of each kind that an image tower may be, by its `model_type`
TINY_TOWERS = {
    "hfvlm_vit_tower": {
        "hidden_size": 40,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "hfvlm_resnet_tower": {
        "depths": (1, 1, 1, 1),
        "width": 4,
        "image_size": 64,
        "num_attention_heads": 4,
        "output_dim": 32,
    },
    "hfvlm_efficientnet_tower": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "image_size": 64,
        "head_channels": 160,
        "hidden_size": 40,
    },
}


#: arguments that are texts, ids and mask
TEXTS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def written_by(forward: Callable) -> tuple[str, str]:
    """The last of `TEXTS` that `forward` takes."""
    return [pair for pair in TEXTS.items() if pair[0] in inspect.signature(forward).parameters][-1]


@dataclass(frozen=True)
class Head:
    """A model class, and an Auto class that it is registered with.

    Args:
        tower: its image tower, if not the one of the tiny variant.
    """

    model_type: str
    auto_class: str
    tower: str | None = None

    def __str__(self) -> str:
        name = f"{find(self.model_type).name}-{self.cls.__name__}"
        return name if self.tower is None else f"{name}-{self.tower}"

    @property
    def cls(self) -> type:
        return load(find(self.model_type).heads[self.auto_class])

    @property
    def _built_with(self) -> dict[str, Any]:
        """What makes its config have the tower, and a projection of whatever width that tower has."""
        if self.tower is None:
            return {}
        fields = load(find(self.model_type).config).__dataclass_fields__
        tower = {"model_type": self.tower, **TINY_TOWERS[self.tower]}
        return {"vision_config": tower, **({"project_images": True} if "project_images" in fields else {})}

    def config(self, **overrides) -> PreTrainedConfig:
        return tiny_config(self.model_type, **self._built_with, **overrides)

    def model(self, seed: int = 0, **overrides) -> torch.nn.Module:
        """A random tiny model, in evaluation mode; equal for equal seeds."""
        return tiny_model(self.model_type, self.auto_class, seed, **self._built_with, **overrides)

    def takes(self, *names: str) -> bool:
        """Whether `forward` has all of these arguments."""
        return set(names) <= set(inspect.signature(self.cls.forward).parameters)

    @property
    def written(self) -> tuple[str, str]:
        """The arguments that are what is written, ids and mask: the text, or, where that is read, the answer."""
        return written_by(self.cls.forward)

    @property
    def images(self) -> list[str]:
        """The arguments that are pixels: one, or one a view."""
        return [name for name in inspect.signature(self.cls.forward).parameters if name.startswith("pixel_values")]

    @property
    def reads_images_into_text(self) -> bool:
        """The text tower has cross-attention: several texts may share an image."""
        text = getattr(self.config(), "text_config", None)
        return self.takes("pixel_values", "input_ids") and getattr(text, "encoder_hidden_size", None) is not None


#: every registered pair; several may name the same class
REGISTERED = [Head(*head) for head in HEADS]
#: one of each class
CLASSES = list({head.cls: head for head in reversed(REGISTERED)}.values())[::-1]


def heads(can: Callable[[Head], Any], among: list[Head] = CLASSES) -> list[Head]:
    """Those of which something is true; a filter that none passes would empty the suite without a word."""
    found = [head for head in among if can(head)]
    assert found, f"no head is left by {inspect.getsource(can)}"
    return found


WITH_IMAGES = heads(lambda head: head.images)
WITH_TEXT = heads(lambda head: head.takes("input_ids"))
#: text that reads the image; text and image encoded apart, and compared
FUSED = heads(lambda head: head.reads_images_into_text)
TWO_TOWERS = heads(
    lambda head: head.takes("input_ids", "pixel_values", "return_loss") and not head.takes("image_pairs")
)
#: those that write text, that write it with an encoder-decoder whose memory the rows share, and of an image alone
GENERATIVE = heads(lambda head: issubclass(head.cls, GenerationMixin))
SHARING = heads(lambda head: issubclass(head.cls, SharedMemoryMixin))
ENCODER_DECODERS = heads(lambda head: issubclass(head.cls, ImageGenerationMixin))
#: those that learn: from labels (of each token, or of each image), or from the inputs themselves
LABELLED = heads(lambda head: head.takes("labels"))
LEARNERS = heads(lambda head: head.takes("labels") or head.takes("return_loss"))
TEXT_LEARNERS = heads(lambda head: head.takes("labels", "input_ids", "logits_to_keep"))
ANSWERERS = heads(lambda head: head.takes("labels", "decoder_input_ids"))
#: those whose loss is a mean over labels: `Trainer` counts them over the batches that it accumulates
COUNTED = heads(lambda head: head.takes("labels", "num_items_in_batch"))
CLASSIFIERS = heads(lambda head: head.takes("labels") and not head.takes("input_ids"))
SELF_TAUGHT = heads(lambda head: head.takes("return_loss"))
RESIZING = heads(lambda head: head.takes("interpolate_pos_encoding"))


def may_have(head: Head) -> bool:
    """Whether the architecture may have the head's tower, which is not the one of its tiny variant."""
    if tiny_config(head.model_type).vision_config.model_type == head.tower:
        return False
    try:
        head.config()
    except ValueError as error:
        if "known towers" in str(error):
            return False
        raise
    return True


#: learners, each with the other towers that it may have
OTHER_TOWERS = heads(may_have, [replace(head, tower=tower) for head in LEARNERS for tower in TINY_TOWERS])

ARCHITECTURES = list({head.model_type: head for head in reversed(REGISTERED)}.values())[::-1]


def every(selected: list[Head]) -> pytest.MarkDecorator:
    """Runs a test once for each of the heads."""
    return pytest.mark.parametrize("head", selected, ids=str)


every_head = every(CLASSES)
#: also with every tower: for what a tower may break
every_build = every([*CLASSES, *OTHER_TOWERS])


def tiny_batch(
    model: torch.nn.Module, images: int = 2, texts: int = 1, length: int = 12, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random pixels and ids, of what the model's `forward` takes: `texts` texts an image, all of `length` tokens, and
    an answer to each if it takes answers.

    12 tokens are more than the few queries for which fp32 attention on CPU leaves sdpa (`CPU_MATMUL_QUERIES`).
    """
    parameters = inspect.signature(type(model).forward).parameters
    generator, batch = torch.Generator().manual_seed(seed), {}
    for name in parameters:
        if name.startswith("pixel_values"):
            vision = model.config.vision_config
            size = (images, vision.num_channels, vision.image_size, vision.image_size)
            batch[name] = torch.randn(size, generator=generator)
    for ids, mask in TEXTS.items():
        if ids in parameters:
            batch[ids] = random_texts(model.config.text_config, images * texts, length, generator)
            batch[mask] = torch.ones_like(batch[ids])
    return batch


def random_texts(config: PreTrainedConfig, texts: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`[texts, length]` ids of ordinary words, from the start token to, where a text is read whole, the end token."""
    special = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    words = torch.tensor([i for i in range(6, config.vocab_size) if i not in special])
    ids = words[torch.randint(len(words), (texts, length), generator=generator)]
    if config.bos_token_id is not None:
        ids[:, 0] = config.bos_token_id
    if config.eos_token_id is not None and not getattr(config, "is_decoder", False):
        ids[:, -1] = config.eos_token_id
    return ids


def to_learn(model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch, to be learned: every token but the start, a class for each image, or what the inputs say."""
    parameters = inspect.signature(type(model).forward).parameters
    if "return_loss" in parameters:
        return {**batch, "return_loss": True}
    if "logits_to_keep" not in parameters:  # a class each
        rows = len(batch.get("input_ids", batch["pixel_values"]))
        return {**batch, "labels": torch.arange(rows) % model.config.num_labels}
    ids, mask = written_by(type(model).forward)
    labels = batch[ids].masked_fill(batch[mask] == 0, -100)
    labels[:, 0] = -100
    return {**batch, "labels": labels}


def pad(batch: dict[str, torch.Tensor], amount: int, side: str, pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """The batch with `amount` padding tokens on one side of every text, if it has texts."""
    width = (amount, 0) if side == "left" else (0, amount)
    padded = {}
    for ids, mask in TEXTS.items():
        if ids in batch:
            padded[ids] = torch.nn.functional.pad(batch[ids], width, value=pad_token_id)
            padded[mask] = torch.nn.functional.pad(batch[mask], width)
    return {**batch, **padded}


def rows(batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Some of the batch's rows; what is no tensor stays."""
    return {name: value[start:stop] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def tensors(outputs: Any) -> dict[str, torch.Tensor]:
    """All that a model returned but losses (they are of the batch, not of a row), by their path: also what is nested,
    but for a cache."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(value, torch.Tensor):
            yield path, value
        elif hasattr(value, "items") or isinstance(value, tuple):
            for name, part in value.items() if hasattr(value, "items") else enumerate(value):
                if not str(name).startswith("loss"):
                    yield from walk(part, f"{path}.{name}" if path else str(name))

    found = dict(walk(outputs, ""))
    assert found
    return found


def of_real_tokens(value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """`[texts, length, ...]` without the padding, flattened; what is no row of tokens stays as it is."""
    if mask is None or value.shape[:2] != mask.shape:
        return value
    return value[mask.bool()]


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], **tolerance: float) -> None:
    """Equal names, and values to 1e-4 of them or 1e-5."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        options = {"rtol": 1e-4, "atol": 1e-5, **tolerance}
        torch.testing.assert_close(value, theirs[name], **options, msg=lambda text, name=name: f"{name}: {text}")


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of parameters and buffers, also of those that are not saved."""
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
