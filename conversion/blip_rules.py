"""BLIP's key rules, and what its two formats tell of a configuration.

`release`: the checkpoints of https://github.com/salesforce/BLIP; `in_tree`: transformers' own BLIP classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from hfvlm.conversion.fusion_rules import (
    MATCHING,
    PROJECTIONS,
    TEMPERATURE,
    momentum_fields,
    queue_rules,
    teacher_rules,
    words,
)
from hfvlm.conversion.rules import Drop, Fresh, Fuse, Rename, Rule, Twin
from hfvlm.conversion.towers import (
    Shapes,
    bert_geometry,
    bert_lm_rules,
    bert_rules,
    fit_positions,
    square,
    vit_geometry,
    vit_rules,
)
from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.models.blip.configuration_blip import BlipConfig


def in_tree_vit_rules(source: str, target: str) -> tuple[Rule, ...]:
    """transformers' BlipVisionModel under the prefix `source` -> `VitTower` under `target`."""
    return (
        Rename(f"{source}embeddings.class_embedding", f"{target}cls_token"),
        Rename(f"{source}embeddings.position_embedding", f"{target}position_embedding", fit=fit_positions),
        Rename(f"{source}embeddings.patch_embedding.{{p}}", f"{target}patch_embed.proj.{{p}}"),
        *(
            Rename(f"{source}encoder.layers.{{i}}.{theirs}.{{p}}", f"{target}blocks.{{i}}.{ours}.{{p}}")
            for theirs, ours in {
                "self_attn.qkv": "attn.qkv",
                "self_attn.projection": "attn.proj",
                "layer_norm1": "norm1",
                "layer_norm2": "norm2",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items()
        ),
        Rename(f"{source}post_layernorm.{{p}}", f"{target}norm.{{p}}"),
    )


_TEXT = bert_lm_rules("text_decoder.", "text_model.", "lm_head.")
RELEASE_CAPTIONER = (*vit_rules("visual_encoder.", "vision_model."), *_TEXT)
IN_TREE_CAPTIONER = (*in_tree_vit_rules("vision_model.", "vision_model."), *_TEXT)
#: its matching head judges texts that start with [CLS], as the release's does when it is asked for one pair
_NO_TEMPERATURE = Fresh("temp", "evaluation does not divide by it")


def _drop(reason: str, *patterns: str) -> tuple[Drop, ...]:
    return tuple(Drop(pattern, reason) for pattern in patterns)


_LAYER, _OWN = "text_decoder.bert.encoder.layer.{i}.attention.", "text_model.layers.{i}.causal_attention"
_SCORES = "text_decoder.cls.predictions."
_BARE_TEXT = bert_rules("text_encoder.", "text_model.")
#: encoder and decoder, stored as two towers that share all but the self-attention
_BOTH_TEXT = (
    Rename(
        (
            "text_encoder.embeddings.word_embeddings.weight",
            "text_decoder.bert.embeddings.word_embeddings.weight",
            f"{_SCORES}decoder.weight",
        ),
        ("text_model.embeddings.word.weight", "lm_head.decoder.weight"),
    ),
    *_BARE_TEXT,
    Fuse(tuple(f"{_LAYER}self.{name}.{{p}}" for name in ("query", "key", "value")), f"{_OWN}.qkv.{{p}}"),
    Rename(f"{_LAYER}output.dense.{{p}}", f"{_OWN}.proj.{{p}}"),
    Rename(f"{_LAYER}output.LayerNorm.{{p}}", f"{_OWN}_norm.{{p}}"),
    Twin("text_decoder.bert.{*rest}", "text_encoder.{*rest}"),
    Rename((f"{_SCORES}bias", f"{_SCORES}decoder.bias"), "lm_head.decoder.bias"),
    Rename(f"{_SCORES}transform.dense.{{p}}", "lm_head.dense.{p}"),
    Rename(f"{_SCORES}transform.LayerNorm.{{p}}", "lm_head.norm.{p}"),
)

IN_TREE_MATCHING = (
    *in_tree_vit_rules("vision_model.", "vision_model."),
    words("text_encoder.", "text_model."),
    *(*_BARE_TEXT, *PROJECTIONS, *MATCHING, _NO_TEMPERATURE),
)
_VISION = vit_rules("visual_encoder.", "vision_model.")
RELEASE_FEATURES = (
    *_VISION,
    words("text_encoder.", "text_model."),
    *_BARE_TEXT,
    *PROJECTIONS,
    Drop("temp", "features are not compared here"),
)
RELEASE_MATCHING = (*RELEASE_FEATURES[:-1], *MATCHING, _NO_TEMPERATURE)
_PAIR = "text_encoder.encoder.layer.{i}.crossattention."
#: NLVR2's: two cross-attentions a layer, merged by a linear layer in the upper ones
RELEASE_REASONING = (
    *(*_VISION, words("text_encoder.", "text_model.")),
    *(
        rule
        for n, own in enumerate(("cross_attention", "second_cross_attention"))
        for rule in (
            Rename(f"{_PAIR}self{n}.query.{{p}}", f"text_model.layers.{{i}}.{own}.q.{{p}}"),
            Fuse(
                tuple(f"{_PAIR}self{n}.{part}.{{p}}" for part in ("key", "value")),
                f"text_model.layers.{{i}}.{own}.kv.{{p}}",
            ),
            Rename(f"{_PAIR}output.dense{n}.{{p}}", f"text_model.layers.{{i}}.{own}.proj.{{p}}"),
        )
    ),
    Rename(f"{_PAIR}output.merge_layer.{{p}}", "text_model.layers.{i}.merge.{p}"),
    *_BARE_TEXT,
    Rename("cls_head.{*rest}", "cls_head.{*rest}"),
)
RELEASE_RETRIEVAL = (
    *(*RELEASE_FEATURES[:-1], *MATCHING, TEMPERATURE),
    *teacher_rules(),
    *queue_rules("ptr_queue", with_ids=True),
)
RELEASE_PRETRAINING = (
    *(*_VISION, *_BOTH_TEXT, *PROJECTIONS, *MATCHING, TEMPERATURE),
    *teacher_rules(),
    *queue_rules("queue_ptr", with_ids=False),
)

_BESIDE = "not part of the image tower"
RELEASE_VISION = (
    *vit_rules("visual_encoder.", ""),
    *_drop(_BESIDE, "visual_encoder_m.{*rest}", "text_encoder_m.{*rest}", "text_encoder.{*rest}"),
    *_drop(_BESIDE, "text_decoder.{*rest}", "cls_head.{*rest}", "itm_head.{p}", "temp"),
    *_drop(_BESIDE, "vision_proj.{p}", "text_proj.{p}", "vision_proj_m.{p}", "text_proj_m.{p}"),
    *_drop(_BESIDE, "image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue"),
)
IN_TREE_VISION = (
    *in_tree_vit_rules("vision_model.", ""),
    *_drop(_BESIDE, "text_decoder.{*rest}", "text_encoder.{*rest}", "text_model.{*rest}", "itm_head.{p}"),
    *_drop(_BESIDE, "vision_proj.{p}", "text_proj.{p}", "visual_projection.{p}", "text_projection.{p}"),
    *_drop(_BESIDE, "logit_scale"),
)


def release_fields(
    tensors: Mapping[str, torch.Tensor], vocabulary: Mapping[str, int] | None, text_prefix: str = "text_decoder.bert."
) -> dict[str, Any]:
    """Fields of a `BlipConfig` that a release's shapes and vocabulary tell.

    Args:
        text_prefix: of the text tower that tells.
    """
    text = bert_geometry(tensors, text_prefix)
    if "vocab_size" in text:
        text["bos_token_id"] = text["vocab_size"] - 2  # [DEC] and [ENC] are the last two
    if vocabulary is not None:
        text.update(eos_token_id=vocabulary["[SEP]"], pad_token_id=vocabulary["[PAD]"])
    fields = {"vision_config": vit_geometry(tensors, "visual_encoder."), "text_config": text}
    if any(key.startswith("text_decoder.") for key in tensors):
        fields["release_beam_search"] = True
    shapes = Shapes(tensors, text_prefix)
    if (width := shapes.size("encoder.layer.0.crossattention.self0.key.weight", 1)) is not None:
        layers = range(text["num_hidden_layers"])
        merging = [i for i in layers if shapes.size(f"encoder.layer.{i}.crossattention.output.merge_layer.bias", 0)]
        text.update(encoder_hidden_size=width, merge_layer=merging[0] if merging else len(layers))
    if "cls_head.2.weight" in tensors:
        fields["num_labels"] = tensors["cls_head.2.weight"].shape[0]
    if any(key.startswith("text_encoder.") for key in tensors):
        fields.update({"projection_dim": 0, **momentum_fields(tensors)})
    return fields


def in_tree_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `BlipConfig` in a transformers `config.json`.

    Raises:
        ValueError: images or patches are not square.
    """
    theirs = transformers.BlipConfig.from_dict(dict(config))
    vision, text = theirs.vision_config, theirs.text_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return {
        "vision_config": {
            **{name: getattr(vision, name) for name in (*names, "layer_norm_eps")},
            "attention_dropout": float(vision.attention_dropout),
            "image_size": square(vision.image_size, "vision_config.image_size"),
            "patch_size": square(vision.patch_size, "vision_config.patch_size"),
        },
        "text_config": {
            **{name: getattr(text, name) for name in (*names, "layer_norm_eps", "vocab_size", "bos_token_id")},
            "max_position_embeddings": text.max_position_embeddings,
            "hidden_dropout_prob": float(text.hidden_dropout_prob),
            "attention_probs_dropout_prob": float(text.attention_probs_dropout_prob),
            "initializer_range": text.initializer_range,
            "pad_token_id": text.pad_token_id,
            "eos_token_id": text.sep_token_id,  # its generate() ends at this one
            "encoder_hidden_size": vision.hidden_size,
        },
        "label_smoothing": text.label_smoothing,
        "projection_dim": theirs.image_text_hidden_size,
    }


def in_tree_config(config: BlipConfig) -> transformers.BlipConfig:
    """The transformers configuration of a captioner.

    Raises:
        ValueError: its image tower, or its several end tokens, have no place there.
    """
    vision, text = config.vision_config, config.text_config
    if not isinstance(vision, VitTowerConfig):
        raise ValueError(f"transformers' BLIP has a vision transformer; this model's tower is {vision.model_type}")
    if not isinstance(text.eos_token_id, int):
        raise ValueError(f"transformers' BLIP ends at one token; text_config.eos_token_id is {text.eos_token_id}")
    if vision.num_channels != 3:
        raise ValueError(f"transformers' BLIP reads 3 channels; vision_config.num_channels is {vision.num_channels}")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return transformers.BlipConfig(
        vision_config={
            name: getattr(vision, name)
            for name in (*names, "layer_norm_eps", "attention_dropout", "image_size", "patch_size")
        },
        text_config={
            **{name: getattr(text, name) for name in (*names, "layer_norm_eps", "vocab_size", "bos_token_id")},
            **{name: getattr(text, name) for name in ("max_position_embeddings", "hidden_dropout_prob")},
            "attention_probs_dropout_prob": text.attention_probs_dropout_prob,
            "initializer_range": text.initializer_range,
            "pad_token_id": text.pad_token_id,
            "sep_token_id": text.eos_token_id,
            "eos_token_id": text.eos_token_id,
            "label_smoothing": config.label_smoothing,
        },
        image_text_hidden_size=config.projection_dim,
    )
