"""Key rules that the releases of ALBEF and BLIP share: projections, temperature, matching head, teacher and queue."""

from collections.abc import Mapping
from typing import Any

import torch

from hfvlm.conversion.rules import Drop, Fresh, Rename, Rule, Transpose
from hfvlm.conversion.towers import bert_rules, vit_rules


def reshaped(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The same numbers in another shape, where there are as many."""
    return tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor


def words(source: str, target: str) -> Rename:
    return Rename(f"{source}embeddings.word_embeddings.weight", f"{target}embeddings.word.weight")


#: one number, without a dimension in the releases
TEMPERATURE = Rename("temp", "temp", fit=reshaped)
PROJECTIONS = (Rename("vision_proj.{p}", "vision_proj.{p}"), Rename("text_proj.{p}", "text_proj.{p}"))
MATCHING = (Rename("itm_head.{p}", "itm_head.{p}"),)


def teacher_rules(text: str = "text_encoder_m.") -> tuple[Rule, ...]:
    """The momentum copies of both towers and projections.

    Args:
        text: prefix of the text tower's copy.
    """
    return (
        *vit_rules("visual_encoder_m.", "teacher_vision_model."),
        words(text, "teacher_text_model."),
        *bert_rules(text, "teacher_text_model."),
        Rename("vision_proj_m.{p}", "teacher_vision_proj.{p}"),
        Rename("text_proj_m.{p}", "teacher_text_proj.{p}"),
    )


def queue_rules(pointer: str, with_ids: bool) -> tuple[Rule, ...]:
    """The queues of both modalities, which share a pointer.

    Args:
        pointer: its key.
        with_ids: the images' ids are stored; without, they are not known.
    """
    ids = Rename("idx_queue", "image_queue.ids", fit=reshaped)
    return (
        Transpose("image_queue", "image_queue.features"),
        Transpose("text_queue", "text_queue.features"),
        Rename(pointer, ("image_queue.pointer", "text_queue.pointer")),
        ids if with_ids else Fresh("image_queue.ids", "not stored: unknown"),
    )


#: what a head that answers has no use for, in a pretraining checkpoint
NOT_ANSWERING = tuple(
    Drop(key, "not part of a head that answers")
    for key in ("vision_proj.{p}", "text_proj.{p}", "vision_proj_m.{p}", "text_proj_m.{p}", "itm_head.{p}", "temp")
    + ("image_queue", "text_queue", "queue_ptr")
)


def momentum_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, int | float | None]:
    """Fields of a `FusionConfig` that a release's projections, queue and teacher tell; without a queue there is no
    training to go on with, so no teacher is kept."""
    fields: dict[str, int | float | None] = {}
    if "vision_proj.weight" in tensors:
        fields["projection_dim"] = tensors["vision_proj.weight"].shape[0]
    if "image_queue" in tensors:
        fields["queue_size"] = tensors["image_queue"].shape[1]
    else:
        fields["momentum"] = None
    return fields


#: what the releases' classes mean, by head: the order in which their data sets number them
CLASSES = {"entailment": ("contradiction", "neutral", "entailment"), "reasoning": ("False", "True")}


def class_fields(head: str, fields: Mapping[str, Any]) -> dict[str, dict]:
    """The classes' names as fields of a config, for a head that has as many classes as the release's."""
    names = CLASSES.get(head, ())
    if fields.get("num_labels") != len(names):
        return {}
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
