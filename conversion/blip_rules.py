"""BLIP's key rules, and what its two formats tell of a configuration.

`release`: the checkpoints of https://github.com/salesforce/BLIP; `in_tree`: transformers' own BLIP classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from hfvlm.conversion.rules import Drop, Rename, Rule
from hfvlm.conversion.towers import bert_geometry, bert_lm_rules, fit_positions, square, vit_geometry, vit_rules
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


def _drop(reason: str, *patterns: str) -> tuple[Drop, ...]:
    return tuple(Drop(pattern, reason) for pattern in patterns)


#: What a pretraining checkpoint (`BLIP_Pretrain`) holds beside a captioner.
PRETRAINING_ONLY = (
    *_drop("the momentum teacher", "visual_encoder_m.{*rest}", "text_encoder_m.{*rest}"),
    *_drop("the momentum teacher", "vision_proj_m.{p}", "text_proj_m.{p}"),
    *_drop("image-text contrast and matching", "text_encoder.{*rest}", "vision_proj.{p}", "text_proj.{p}"),
    *_drop("image-text contrast and matching", "itm_head.{p}", "temp"),
    *_drop("the queue of negatives", "image_queue", "text_queue", "queue_ptr"),
)

_BESIDE = "not part of the image tower"
RELEASE_VISION = (
    *vit_rules("visual_encoder.", ""),
    *_drop(_BESIDE, *(rule.source for rule in PRETRAINING_ONLY)),
    *_drop(_BESIDE, "text_decoder.{*rest}", "cls_head.{*rest}", "ptr_queue", "idx_queue"),
)
IN_TREE_VISION = (
    *in_tree_vit_rules("vision_model.", ""),
    *_drop(_BESIDE, "text_decoder.{*rest}", "text_encoder.{*rest}", "text_model.{*rest}", "itm_head.{p}"),
    *_drop(_BESIDE, "vision_proj.{p}", "text_proj.{p}", "visual_projection.{p}", "text_projection.{p}"),
    *_drop(_BESIDE, "logit_scale"),
)


def release_captioner_rules(tensors: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    """The captioner's table; a pretraining checkpoint's other parts are dropped, any other head's are an error."""
    return (*RELEASE_CAPTIONER, *PRETRAINING_ONLY) if "image_queue" in tensors else RELEASE_CAPTIONER


def release_fields(tensors: Mapping[str, torch.Tensor], words: Mapping[str, int] | None) -> dict[str, Any]:
    """Fields of a `BlipConfig` that a release's shapes and vocabulary tell."""
    text = bert_geometry(tensors, "text_decoder.bert.")
    if "vocab_size" in text:
        text["bos_token_id"] = text["vocab_size"] - 2  # [DEC] and [ENC] are the last two
    if words is not None:
        text.update(eos_token_id=words["[SEP]"], pad_token_id=words["[PAD]"])
    return {
        "vision_config": vit_geometry(tensors, "visual_encoder."),
        "text_config": text,
        "release_beam_search": True,
    }


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
