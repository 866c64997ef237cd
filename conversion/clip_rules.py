"""CLIP's key rules, and what its formats tell of a configuration.

`release`: the models of https://github.com/openai/CLIP and of https://github.com/mlfoundations/open_clip, which name
their tensors alike; `in_tree`: transformers' own CLIP.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers

from hfvlm.conversion.rules import Drop, Fuse, Rename, Rule
from hfvlm.conversion.towers import Shapes, fit_positions, known, resnet_geometry, resnet_rules
from hfvlm.encoders.configuration import ClipTextTowerConfig, ResNetTowerConfig, VitTowerConfig
from hfvlm.models.clip.configuration_clip import CLIP_VIT, ClipConfig


VISION, TEXT = "vision_model.", "text_model."
#: fields of transformers' towers that ours have by the same name
SHARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
    "attention_dropout", "initializer_range",
)  # fmt: skip
VISION_ONLY = ("num_channels", "image_size", "patch_size")
TEXT_ONLY = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
#: fields of towers that tensors do not tell, but which change what they compute
GUESSED = ("num_attention_heads", "hidden_act", "pooling", "causal")
#: how transformers' configurations say that the end of a text is its highest id
LEGACY_END = 2


def text_prefix(tensors: Mapping[str, torch.Tensor]) -> str:
    """What the text tower's keys start with in a release: open_clip's newer models have it apart."""
    return "text." if any(key.startswith("text.") for key in tensors) else ""


def release_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, projections that are stored as `[in, out]` matrices laid out as a linear layer's weight."""
    matrices = ("visual.proj", f"{text_prefix(tensors)}text_projection")
    return {
        (f"{key}.weight" if key in matrices else key): value.t().contiguous() if key in matrices else value
        for key, value in tensors.items()
    }


def fit_table(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Makes a table of vectors fit: one more or one less dimension of size 1, and positions of another grid."""
    if table.ndim == 0 or len(shape) < 2 or table.shape[-1] != shape[-1]:
        return table
    table = table.reshape(1, -1, table.shape[-1])
    if table.shape[1] != math.prod(shape[:-1]):
        table = fit_positions(table, torch.Size([1, math.prod(shape[:-1]), shape[-1]]))
    return table.reshape(shape) if table.numel() == math.prod(shape) else table


def fit_numbers(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The same numbers with more or fewer dimensions of size 1: a class token, a scale."""
    return tensor.reshape(shape) if tensor.numel() == math.prod(shape) else tensor


def _release_blocks(source: str, target: str) -> tuple[Rule, ...]:
    block, own = f"{source}transformer.resblocks.{{i}}.", f"{target}blocks.{{i}}."
    names = {
        "ln_1.{p}": "norm1.{p}",
        "attn.in_proj_{p}": "attn.qkv.{p}",
        "attn.out_proj.{p}": "attn.proj.{p}",
        "ln_2.{p}": "norm2.{p}",
        "mlp.c_fc.{p}": "mlp.fc1.{p}",
        "mlp.c_proj.{p}": "mlp.fc2.{p}",
    }
    return tuple(Rename(block + theirs, own + ours) for theirs, ours in names.items())


def release_rules(config: ClipConfig, text: str) -> tuple[Rule, ...]:
    """A release's, as `release_tensors` lays it out.

    Args:
        text: of `text_prefix`.
    """
    if isinstance(config.vision_config, ResNetTowerConfig):
        vision = resnet_rules("visual.", VISION)
    else:
        vision = (
            Rename("visual.class_embedding", f"{VISION}cls_token", fit=fit_numbers),
            Rename("visual.positional_embedding", f"{VISION}position_embedding", fit=fit_table),
            Rename("visual.conv1.{p}", f"{VISION}patch_embed.proj.{{p}}"),
            Rename("visual.ln_pre.{p}", f"{VISION}pre_norm.{{p}}"),
            Rename("visual.ln_post.{p}", f"{VISION}norm.{{p}}"),
            Rename("visual.proj.{p}", "visual_projection.{p}"),
            *_release_blocks("visual.", VISION),
        )
    mask, size = "the causal mask: made when it is needed", "a size, which the tensors tell"
    return (
        *vision,
        Rename(f"{text}token_embedding.{{p}}", f"{TEXT}token_embedding.{{p}}"),
        Rename(f"{text}positional_embedding", f"{TEXT}position_embedding"),
        Rename(f"{text}ln_final.{{p}}", f"{TEXT}norm.{{p}}"),
        Rename(f"{text}text_projection.{{p}}", "text_projection.{p}"),
        *_release_blocks(text, TEXT),
        *(Rename(name, name, fit=fit_numbers) for name in ("logit_scale", "logit_bias")),
        Drop(f"{text}attn_mask", mask),
        Drop(f"{text}transformer.resblocks.{{i}}.attn_mask", mask),
        *(Drop(name, size) for name in ("input_resolution", "context_length", "vocab_size")),
    )


def release_fields(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a release's tensors tell, as `release_tensors` lays them out; activations are OpenAI's."""
    text = text_prefix(tensors)
    shapes = Shapes(tensors, "")
    if "visual.layer1.0.conv1.weight" in tensors:
        vision = {"model_type": ResNetTowerConfig.model_type, **resnet_geometry(tensors, "visual.")}
    else:
        vision = _vit_fields(Shapes(tensors, "visual."))
    words = shapes.size(f"{text}token_embedding.weight", 0)
    fields = {
        "projection_dim": shapes.size(f"{text}text_projection.weight", 0),
        "text_projection_bias": f"{text}text_projection.bias" in tensors,
        "vision_config": vision,
        "text_config": known(
            {
                "vocab_size": words,
                "max_position_embeddings": shapes.size(f"{text}positional_embedding", 0),
                "bos_token_id": words and words - 2,
                "eos_token_id": words and words - 1,
                **_block_fields(Shapes(tensors, text), shapes.size(f"{text}token_embedding.weight", 1)),
            }
        ),
    }
    if "logit_bias" in tensors:
        fields.update(objective="sigmoid", logit_bias_init_value=-10.0)
    return known(fields)


def guesses(
    config: ClipConfig, fields: Mapping[str, Any], told: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What a release's tensors do not tell of the towers, and nobody else did: sub-config -> field -> value.

    Args:
        config: with the guesses.
        fields: of `release_fields`, whose heads are a guess themselves.
        told: fields of `ClipConfig` that the caller named.
    """
    told, found = list(told), {}
    for part in ("vision_config", "text_config"):
        tower, sources = getattr(config, part), (fields, *told)
        named = {name for source in sources for name in source.get(part, {})} - {"num_attention_heads"}
        named |= {name for source in told for name in source.get(part, {})}
        found[part] = {name: getattr(tower, name) for name in GUESSED if name not in named and hasattr(tower, name)}
    return {part: missing for part, missing in found.items() if missing}


def _vit_fields(shapes: Shapes) -> dict[str, Any]:
    patch, positions = shapes.size("conv1.weight", 2), shapes.size("positional_embedding", 0)
    image_size = None
    if patch and positions:
        side = math.isqrt(positions - 1)
        if side * side != positions - 1:
            raise ValueError(
                f"visual.positional_embedding has {positions} positions: not a class token and a square grid"
            )
        image_size = side * patch
    return known(
        {
            "patch_size": patch,
            "image_size": image_size,
            "num_channels": shapes.size("conv1.weight", 1),
            "pre_norm": "visual.ln_pre.weight" in shapes.tensors,
            **_block_fields(shapes, shapes.size("conv1.weight", 0)),
        }
    )


def _block_fields(shapes: Shapes, width: int | None) -> dict[str, int | None]:
    heads = (width or 0) // 64  # as the original counts them
    return {
        "hidden_size": width,
        "num_attention_heads": heads if heads and width % heads == 0 else None,
        "intermediate_size": shapes.size("transformer.resblocks.0.mlp.c_fc.weight", 0),
        "num_hidden_layers": shapes.count("transformer.resblocks"),
    }


def _in_tree_blocks(source: str, target: str) -> tuple[Rule, ...]:
    layer, own = f"{source}encoder.layers.{{i}}.", f"{target}blocks.{{i}}."
    return (
        Rename(f"{layer}layer_norm1.{{p}}", f"{own}norm1.{{p}}"),
        Fuse(tuple(f"{layer}self_attn.{part}_proj.{{p}}" for part in "qkv"), f"{own}attn.qkv.{{p}}"),
        Rename(f"{layer}self_attn.out_proj.{{p}}", f"{own}attn.proj.{{p}}"),
        Rename(f"{layer}layer_norm2.{{p}}", f"{own}norm2.{{p}}"),
        *(Rename(f"{layer}mlp.fc{n}.{{p}}", f"{own}mlp.fc{n}.{{p}}") for n in (1, 2)),
    )


def in_tree_rules() -> tuple[Rule, ...]:
    """transformers' CLIP, any of its heads with a projection or a classifier."""
    counted = "0, 1, 2, ...: counted when needed"
    return (
        Drop(f"{VISION}embeddings.position_ids", counted),
        Drop(f"{TEXT}embeddings.position_ids", counted),
        Rename(f"{VISION}embeddings.class_embedding", f"{VISION}cls_token", fit=fit_numbers),
        Rename(f"{VISION}embeddings.position_embedding.weight", f"{VISION}position_embedding", fit=fit_table),
        Rename(f"{VISION}embeddings.patch_embedding.{{p}}", f"{VISION}patch_embed.proj.{{p}}"),
        Rename(f"{VISION}pre_layrnorm.{{p}}", f"{VISION}pre_norm.{{p}}"),
        Rename(f"{VISION}post_layernorm.{{p}}", f"{VISION}norm.{{p}}"),
        *_in_tree_blocks(VISION, VISION),
        Rename(f"{TEXT}embeddings.token_embedding.{{p}}", f"{TEXT}token_embedding.{{p}}"),
        Rename(f"{TEXT}embeddings.position_embedding.weight", f"{TEXT}position_embedding"),
        Rename(f"{TEXT}final_layer_norm.{{p}}", f"{TEXT}norm.{{p}}"),
        *_in_tree_blocks(TEXT, TEXT),
        *(Rename(f"{name}.{{p}}", f"{name}.{{p}}") for name in ("visual_projection", "text_projection", "classifier")),
        Rename("logit_scale", "logit_scale"),
    )


def own_rules() -> tuple[Rule, ...]:
    """hfvlm's own keys, for another image size."""
    positions = ("position_embedding", "attention_pool.position_embedding")
    return (
        *(Rename(f"{VISION}{table}", f"{VISION}{table}", fit=fit_table) for table in positions),
        Rename("{*rest}", "{*rest}"),
    )


def in_tree_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ClipConfig` from transformers' `config.json`: of a whole CLIP, or of one tower."""
    kind = config.get("model_type")
    if kind == "clip":
        theirs = transformers.CLIPConfig.from_dict(dict(config))
        vision, text, joint = theirs.vision_config, theirs.text_config, theirs.projection_dim
        labels = {name: getattr(theirs, name) for name in ("id2label", "label2id", "problem_type")}
        fields = {"logit_scale_init_value": float(theirs.logit_scale_init_value), **labels}
    elif kind == "clip_vision_model":
        vision, text = transformers.CLIPVisionConfig.from_dict(dict(config)), None
        fields, joint = {}, vision.projection_dim
    else:
        vision, text = None, transformers.CLIPTextConfig.from_dict(dict(config))
        fields, joint = {}, text.projection_dim
    fields["projection_dim"] = joint
    if vision is not None:
        fields["vision_config"] = {name: getattr(vision, name) for name in (*SHARED, *VISION_ONLY)}
    if text is not None:
        fields["text_config"] = _in_tree_text(text)
    return fields


def _in_tree_text(theirs: transformers.CLIPTextConfig) -> dict[str, Any]:
    fields = {name: getattr(theirs, name) for name in (*SHARED, *TEXT_ONLY)}
    if theirs.eos_token_id == LEGACY_END:  # and the other special ids of such a file are as wrong
        words = theirs.vocab_size
        return {**fields, "pooling": "argmax", "pad_token_id": 0, "bos_token_id": words - 2, "eos_token_id": words - 1}
    return {**fields, "pooling": "eos"}


def in_tree_config(config: ClipConfig) -> transformers.CLIPConfig:
    """The configuration of the same model in transformers.

    Raises:
        ValueError: transformers' CLIP cannot hold it; names the fields.
    """
    vision, text = config.vision_config, config.text_config
    for part, kind in ((vision, VitTowerConfig), (text, ClipTextTowerConfig)):
        if not isinstance(part, kind):
            raise ValueError(f"transformers' CLIP has no {part.model_type}: only a ViT with CLIP's text transformer")
    fixed = {
        **{name: CLIP_VIT[name] for name in ("patch_bias", "pre_norm", "final_norm")},
        **{"class_token": True, "pooling": "cls", "position_embedding": "learned", "stem_config": None},
        **{"hidden_dropout_prob": 0.0, "interpolation": "bicubic"},
    }
    wrong = [
        f"vision_config.{name}={getattr(vision, name)!r}" for name in fixed if getattr(vision, name) != fixed[name]
    ]
    if not text.causal:
        wrong.append("text_config.causal=False")
    if text.pooling not in ("argmax", "eos") or (text.pooling == "eos" and text.eos_token_id == LEGACY_END):
        wrong.append(f"text_config.pooling={text.pooling!r}")
    if not config.project_images:
        wrong.append("project_images=False")
    if config.text_projection_bias:
        wrong.append("text_projection_bias=True")
    if config.logit_bias_init_value is not None:
        wrong.append("logit_bias_init_value: it has no bias")
    if wrong:
        raise ValueError(f"transformers' CLIP has no place for {', '.join(wrong)}")
    end = LEGACY_END if text.pooling == "argmax" else text.eos_token_id
    joint = {"projection_dim": config.projection_dim}
    theirs_text = {name: getattr(text, name) for name in (*SHARED, *TEXT_ONLY)}
    return transformers.CLIPConfig(
        vision_config={**{name: getattr(vision, name) for name in (*SHARED, *VISION_ONLY)}, **joint},
        text_config={**theirs_text, "eos_token_id": end, **joint},
        logit_scale_init_value=config.logit_scale_init_value,
        **{name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")},
        **joint,
    )
