"""The heads of BLIP that a checkpoint may be of, and how its keys tell which."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from hfvlm.conversion import blip_rules
from hfvlm.conversion.rules import Rule
from hfvlm.models.blip.answering_blip import BlipForVisualQuestionAnswering
from hfvlm.models.blip.classes_blip import BlipForVisualReasoning
from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration, BlipModel
from hfvlm.models.blip.pretraining_blip import BlipForImageTextRetrieval, BlipForPreTraining


class Head(NamedTuple):
    """A head that a checkpoint may be of.

    Attributes:
        cls: its class.
        release: the rules of the original release.
        in_tree, theirs: those of transformers' own class, and that class, if it has one.
        text: prefix of the text tower that tells the sizes.
    """

    cls: type[PreTrainedModel]
    release: tuple[Rule, ...]
    in_tree: tuple[Rule, ...] | None = None
    theirs: type[PreTrainedModel] | None = None
    text: str = "text_encoder."


HEADS = {
    "captioning": Head(
        BlipForConditionalGeneration,
        blip_rules.RELEASE_CAPTIONER,
        blip_rules.IN_TREE_CAPTIONER,
        transformers.BlipForConditionalGeneration,
        "text_decoder.bert.",
    ),
    "pretraining": Head(BlipForPreTraining, blip_rules.RELEASE_PRETRAINING),
    "retrieval": Head(BlipForImageTextRetrieval, blip_rules.RELEASE_RETRIEVAL),
    "matching": Head(
        BlipForImageTextRetrieval,
        blip_rules.RELEASE_MATCHING,
        blip_rules.IN_TREE_MATCHING,
        transformers.BlipForImageTextRetrieval,
    ),
    "answering": Head(
        BlipForVisualQuestionAnswering,
        blip_rules.RELEASE_ANSWERING,
        blip_rules.IN_TREE_ANSWERING,
        transformers.BlipForQuestionAnswering,
    ),
    "reasoning": Head(BlipForVisualReasoning, blip_rules.RELEASE_REASONING),
    "features": Head(BlipModel, blip_rules.RELEASE_FEATURES),
}


def head_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """The head that a checkpoint's keys are of, a key of `HEADS`.

    Raises:
        ValueError: none of those.
    """
    prefixes = {key.partition(".")[0] for key in tensors}
    if "cls_head" in prefixes:
        return "reasoning"
    if {"text_decoder", "text_encoder"} <= prefixes and "image_queue" not in prefixes:
        return "answering"
    if "text_decoder" in prefixes:
        return "pretraining" if "image_queue" in prefixes else "captioning"
    if "text_encoder" in prefixes:
        return "retrieval" if "image_queue" in prefixes else "matching" if "itm_head" in prefixes else "features"
    raise ValueError(
        "the checkpoint has neither text_encoder.* nor text_decoder.*, so it is no head of BLIP; its image tower "
        "alone: --part vision, or convert_vision()"
    )
