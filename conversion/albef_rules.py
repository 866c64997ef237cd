"""ALBEF's key rules, and what its release (https://github.com/salesforce/ALBEF) and LAVIS's tell of a config."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from hfvlm.conversion.fusion_rules import (
    MATCHING,
    NOT_ANSWERING,
    PROJECTIONS,
    TEMPERATURE,
    momentum_fields,
    queue_rules,
    teacher_rules,
    words,
)
from hfvlm.conversion.rules import Drop, Rule
from hfvlm.conversion.towers import Shapes, bert_geometry, bert_lm_rules, bert_rules, vit_geometry, vit_rules


_VISION = vit_rules("visual_encoder.", "vision_model.")
_SHARED = (*PROJECTIONS, *MATCHING, TEMPERATURE)


def _masked_language(source: str, target: str, head: str) -> tuple[Rule, ...]:
    return bert_lm_rules(source, target, head, "attention")


PRETRAINING = (
    *(*_VISION, *_masked_language("text_encoder.", "text_model.", "lm_head."), *_SHARED),
    *vit_rules("visual_encoder_m.", "teacher_vision_model."),
    *_masked_language("text_encoder_m.", "teacher_text_model.", "teacher_lm_head."),
    *teacher_rules()[-2:],
    *queue_rules("queue_ptr", with_ids=False),
)
RETRIEVAL = (
    *(*_VISION, words("text_encoder.", "text_model."), *bert_rules("text_encoder.", "text_model."), *_SHARED),
    *teacher_rules(),
    *queue_rules("queue_ptr", with_ids=True),
)
_READING = (words("text_encoder.", "text_model."), *bert_rules("text_encoder.", "text_model."))
ANSWERING = (
    *(*_VISION, *_READING, *bert_lm_rules("text_decoder.", "text_decoder.", "lm_head.")),
    *vit_rules("visual_encoder_m.", "teacher_vision_model."),
    words("text_encoder_m.", "teacher_text_model."),
    *bert_rules("text_encoder_m.", "teacher_text_model."),
    *bert_lm_rules("text_decoder_m.", "teacher_text_decoder.", "teacher_lm_head."),
    *NOT_ANSWERING,
)
#: LAVIS's feature extractor: a masked language model of which the head is not used
FEATURES = (
    *(*_VISION, words("text_encoder.bert.", "text_model."), *bert_rules("text_encoder.bert.", "text_model.")),
    *PROJECTIONS,
    Drop("text_encoder.cls.{*rest}", "the words' scores"),
    Drop("temp", "features are not compared here"),
)


def for_answering(tensors: Mapping[str, torch.Tensor], fusion_layer: int) -> dict[str, torch.Tensor]:
    """A pretraining checkpoint's tensors as those of a head that answers, whose decoder starts as the layers that fuse
    with the words' scores: so ALBEF finetunes.

    Args:
        fusion_layer: the first layer that fuses.
    """
    made = {}
    for key, value in tensors.items():
        tower, _, rest = key.partition(".")
        if tower not in ("text_encoder", "text_encoder_m"):
            made[key] = value
            continue
        decoder, layer = tower.replace("encoder", "decoder"), re.match(r"(bert\.encoder\.layer\.)(\d+)(.*)", rest)
        if rest.startswith("bert."):
            made[f"{tower}.{rest.removeprefix('bert.')}"] = value
        if layer is None:
            made[f"{decoder}.{rest}"] = value
        elif int(layer[2]) >= fusion_layer:
            made[f"{decoder}.{layer[1]}{int(layer[2]) - fusion_layer}{layer[3]}"] = value
    return made


def release_fields(
    tensors: Mapping[str, torch.Tensor], vocabulary: Mapping[str, int] | None, text_prefix: str
) -> dict[str, Any]:
    """Fields of an `AlbefConfig` that a release's shapes and vocabulary tell.

    Args:
        text_prefix: of the text tower.
    """
    text = bert_geometry(tensors, text_prefix)
    shapes = Shapes(tensors, text_prefix)
    layers = range(text.get("num_hidden_layers", 0))
    fusing = [i for i in layers if shapes.size(f"encoder.layer.{i}.crossattention.self.key.weight", 1) is not None]
    if fusing:
        text["fusion_layer"] = fusing[0]
        text["encoder_hidden_size"] = shapes.size(f"encoder.layer.{fusing[0]}.crossattention.self.key.weight", 1)
    text["type_vocab_size"] = shapes.size("embeddings.token_type_embeddings.weight", 0) or 0
    fields: dict[str, Any] = {"vision_config": vit_geometry(tensors, "visual_encoder."), "text_config": text}
    decoder_layers = Shapes(tensors, "text_decoder.bert.").count("encoder.layer")
    if decoder_layers is not None:
        fields["decoder_layers"] = decoder_layers
    if vocabulary is not None:
        text.update(
            bos_token_id=vocabulary["[CLS]"], eos_token_id=vocabulary["[SEP]"], pad_token_id=vocabulary["[PAD]"]
        )
        if "[MASK]" in vocabulary:
            fields["mask_token_id"] = vocabulary["[MASK]"]
    return {**fields, "projection_dim": 0, **momentum_fields(tensors)}
