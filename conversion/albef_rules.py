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
from hfvlm.conversion.rules import Drop, Rename, Rule, Twin
from hfvlm.conversion.towers import (
    Shapes,
    bert_geometry,
    bert_layer_rules,
    bert_lm_rules,
    bert_rules,
    vit_geometry,
    vit_rules,
)


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
ENTAILMENT = (
    *(*_VISION, words("text_encoder.", "text_model."), *bert_rules("text_encoder.", "text_model.")),
    Rename("cls_head.{*rest}", "cls_head.{*rest}"),
    *(*teacher_rules()[:-2], Rename("cls_head_m.{*rest}", "teacher_cls_head.{*rest}")),
)


def _paired_text(source: str, target: str, first: int, pairs: int) -> tuple[Rule, ...]:
    """A text tower in which each fusion layer is there twice, one after the other, with one projection of keys and
    values stored under both.

    Args:
        first: the first fusion layer.
        pairs: how many there are.
    """
    rules: list[Rule] = [words(source, target)]
    for i in range(pairs):
        one, two = f"{source}encoder.layer.{first + 2 * i}.", f"{source}encoder.layer.{first + 2 * i + 1}."
        own, second = f"{target}layers.{first + i}.", f"{target}second_layers.{i}."
        shared = tuple(f"crossattention.self.{name}.{{p}}" for name in ("key", "value"))
        rules += [*bert_layer_rules(one, own), *(Twin(two + name, one + name) for name in shared)]
        rules += [rule for rule in bert_layer_rules(two, second) if shared[0] not in "".join(rule.sources)]
    return (*rules, *bert_rules(source, target))


def reasoning(tensors: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    """The rules of NLVR2's model, whose layers are numbered by the tensors that it has."""
    first, pairs = paired_layers(tensors)
    return (
        *(*_VISION, *_paired_text("text_encoder.", "text_model.", first, pairs)),
        Rename("cls_head.{*rest}", "cls_head.{*rest}"),
        *vit_rules("visual_encoder_m.", "teacher_vision_model."),
        *_paired_text("text_encoder_m.", "teacher_text_model.", first, pairs),
        Rename("cls_head_m.{*rest}", "teacher_cls_head.{*rest}"),
    )


def assignment(tensors: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    """The rules of the text assignment before NLVR2, whose layers are numbered by the tensors that it has."""
    return (
        *(*_VISION, *_paired_text("text_encoder.", "text_model.", *paired_layers(tensors))),
        PROJECTIONS[0],
        Drop("text_proj.{p}", "texts are not compared here"),
        Drop("temp", "images are compared by a constant temperature here"),
        Rename("ta_head.{p}", "ta_head.{p}"),
    )


def paired_layers(tensors: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """The first fusion layer of a tower whose fusion layers are there twice, and how many pairs there are."""
    shapes = Shapes(tensors, "text_encoder.")
    count = shapes.count("encoder.layer") or 0
    fusing = [i for i in range(count) if shapes.size(f"encoder.layer.{i}.crossattention.self.key.weight", 1)]
    return (fusing[0], len(fusing) // 2) if fusing else (count, 0)


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
    tensors: Mapping[str, torch.Tensor],
    vocabulary: Mapping[str, int] | None,
    text_prefix: str,
    paired: bool = False,
) -> dict[str, Any]:
    """Fields of an `AlbefConfig` that a release's shapes and vocabulary tell.

    Args:
        text_prefix: of the text tower.
        paired: its fusion layers are there twice.
    """
    text = bert_geometry(tensors, text_prefix)
    shapes = Shapes(tensors, text_prefix)
    layers = range(text.get("num_hidden_layers", 0))
    fusing = [i for i in layers if shapes.size(f"encoder.layer.{i}.crossattention.self.key.weight", 1) is not None]
    if fusing:
        text["fusion_layer"] = fusing[0]
        text["encoder_hidden_size"] = shapes.size(f"encoder.layer.{fusing[0]}.crossattention.self.key.weight", 1)
    if paired:
        text["num_hidden_layers"] = fusing[0] + len(fusing) // 2
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
    if "cls_head.2.weight" in tensors:
        fields["num_labels"] = tensors["cls_head.2.weight"].shape[0]
    fields.update({"projection_dim": 0, **momentum_fields(tensors)})
    if any(key.startswith("visual_encoder_m.") for key in tensors):
        fields.pop("momentum", None)
    return fields
