"""ALIGN's key rules, and what transformers' configuration of it means in ours; its classes are the only format."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from hfvlm.conversion.rules import Drop, Rename, Rule
from hfvlm.conversion.towers import bert_rules, square
from hfvlm.encoders.configuration import BertTowerConfig, EfficientNetTowerConfig
from hfvlm.models.align.configuration_align import AlignConfig


POOLER = "text_model.pooler.dense.weight"

_BLOCK = {
    "expansion.expand_conv": "expand.conv",
    "expansion.expand_bn": "expand.norm",
    "depthwise_conv.depthwise_conv": "depthwise.conv",
    "depthwise_conv.depthwise_norm": "depthwise.norm",
    "squeeze_excite.reduce": "squeeze_excite.reduce",
    "squeeze_excite.expand": "squeeze_excite.expand",
    "projection.project_conv": "project.conv",
    "projection.project_bn": "project.norm",
}

_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
#: ours -> theirs, of the image tower
_VISION_FIELDS = {
    "width_coefficient": "width_coefficient",
    "depth_coefficient": "depth_coefficient",
    "channel_divisor": "depth_divisor",
    "hidden_act": "hidden_act",
    "squeeze_ratio": "squeeze_expansion_ratio",
    "symmetric_blocks": "depthwise_padding",
    "num_channels": "num_channels",
    "pooling": "pooling_type",
    "batch_norm_eps": "batch_norm_eps",
    "drop_connect_rate": "drop_connect_rate",
    "initializer_range": "initializer_range",
}
#: their fields of the numbers in a row of `stages`
_STAGE_FIELDS = ("num_block_repeats", "kernel_sizes", "strides", "expand_ratios", "out_channels")


def in_tree_rules(pooler: bool) -> tuple[Rule, ...]:
    """transformers' AlignModel -> `AlignModel`.

    Args:
        pooler: ours carries the text tower's pooler.
    """
    vision = "vision_model."
    return (
        Rename(f"{vision}embeddings.convolution.{{p}}", f"{vision}stem.conv.{{p}}"),
        Rename(f"{vision}embeddings.batchnorm.{{p}}", f"{vision}stem.norm.{{p}}"),
        *(
            Rename(f"{vision}encoder.blocks.{{i}}.{theirs}.{{p}}", f"{vision}blocks.{{i}}.{ours}.{{p}}")
            for theirs, ours in _BLOCK.items()
        ),
        Rename("text_model.embeddings.word_embeddings.weight", "text_model.embeddings.word.weight"),
        Drop("text_model.embeddings.token_type_ids", "0, 0, 0, ...: made when needed"),
        *bert_rules("text_model.", "text_model."),
        Rename("text_model.pooler.dense.{p}", "text_pooler.{p}")
        if pooler
        else Drop("text_model.pooler.dense.{p}", "no feature reads the text tower's pooler"),
        Rename("text_projection.{p}", "text_projection.{p}"),
        Rename("temperature", "temperature"),
    )


def in_tree_fields(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of an `AlignConfig` in a transformers `config.json`.

    Raises:
        ValueError: images are not square.
    """
    theirs = transformers.AlignConfig.from_dict(dict(config))
    vision, text = theirs.vision_config, theirs.text_config
    stages = zip(*(getattr(vision, name) for name in _STAGE_FIELDS), strict=True)
    fields = {ours: getattr(vision, name) for ours, name in _VISION_FIELDS.items()}
    return {
        "vision_config": {
            **fields,
            "drop_connect_rate": float(vision.drop_connect_rate),
            "stages": [list(stage) for stage in stages],
            "image_size": square(vision.image_size, "vision_config.image_size"),
            "batch_norm_momentum": _other_share(vision.batch_norm_momentum),
        },
        "text_config": {
            **{name: getattr(text, name) for name in _TEXT_FIELDS},
            "hidden_dropout_prob": float(text.hidden_dropout_prob),
            "attention_probs_dropout_prob": float(text.attention_probs_dropout_prob),
        },
        "projection_dim": theirs.projection_dim,
        "temperature_init_value": theirs.temperature_init_value,
        "initializer_range": theirs.initializer_range,
        "text_pooler": POOLER in tensors,
    }


def _other_share(momentum: float) -> float:
    """Theirs is Keras' number, the share of the statistics that stays; torch's is the share of the new batch."""
    return round(1 - momentum, 12)


def in_tree_config(config: AlignConfig) -> transformers.AlignConfig:
    """The transformers configuration of a model.

    Raises:
        ValueError: the model has something that transformers' ALIGN has no place for; names the field.
    """
    vision, text = config.vision_config, config.text_config
    if not isinstance(vision, EfficientNetTowerConfig):
        raise ValueError(f"transformers' ALIGN has an EfficientNet; this model's image tower is {vision.model_type}")
    if not isinstance(text, BertTowerConfig):
        raise ValueError(f"transformers' ALIGN has a BERT; this model's text tower is {text.model_type}")
    opening = any(block.opens and block.stride == 1 and block.inputs == block.outputs for block in vision.plan[1])
    cannot = {
        "vision_config.lite=True": vision.lite,
        'vision_config.padding="same"': vision.padding == "same",
        "vision_config.head_channels": vision.head_channels is not None,
        "vision_config.opening_residual=True": vision.opening_residual and opening,
        "a vision_config.hidden_size that is not the last map's channels": vision.hidden_size != vision.map_channels,
        "project_images=True": config.project_images,
        "text_projection_bias=False": not config.text_projection_bias,
        "text_config.is_decoder=True": text.is_decoder,
        "text_config.encoder_hidden_size": text.encoder_hidden_size is not None,
        "text_config.type_vocab_size=0": text.type_vocab_size == 0,
    }
    if any(cannot.values()):
        found = ", ".join(name for name, has in cannot.items() if has)
        raise ValueError(f"transformers' ALIGN has no place for {found}")
    stages = {name: list(column) for name, column in zip(_STAGE_FIELDS, zip(*vision.stages), strict=True)}
    channels = stages["out_channels"]
    return transformers.AlignConfig(
        vision_config={
            **{name: getattr(vision, ours) for ours, name in _VISION_FIELDS.items()},
            **stages,
            "in_channels": [32, *channels[:-1]],
            "hidden_act": vision.hidden_act or "silu",
            "image_size": vision.image_size,
            "batch_norm_momentum": _other_share(vision.batch_norm_momentum),
            # the side of its pooling window, which must cover the last map
            "hidden_dim": max(vision.hidden_size, vision.image_size),
        },
        text_config={name: getattr(text, name) for name in _TEXT_FIELDS},
        projection_dim=config.projection_dim,
        temperature_init_value=config.temperature_init_value,
        initializer_range=config.initializer_range,
    )
