"""ViT's key rules, and what its formats tell of a configuration.

`timm`: the models of https://github.com/huggingface/pytorch-image-models, hybrids among them; `flax`: the `.npz` files
of https://github.com/google-research/vision_transformer (the paper's and AugReg's); `in_tree`: transformers' own ViT.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from hfvlm.conversion.rules import Drop, Fit, Fresh, Fuse, Rename, Rule
from hfvlm.conversion.towers import Shapes, heads_of_64, known, square
from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.models.vit.configuration_vit import VitConfig, bit_stem
from hfvlm.nn.embedding import resize_positions, sincos_positions


TOWER = "vision_model."
STEM = f"{TOWER}patch_embed.backbone.bit."
ATTENTION = ("query", "key", "value")
#: width -> heads of the published sizes whose heads are wider than 64
WIDE = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def position_fit(tower: VitTowerConfig) -> Fit:
    """Makes a table `[1, positions, dim]` fit a tower: another grid, or a class token that has no place in it.

    A table that cannot be made to fit is left as it is, for the error that names its shape.
    """
    prefix = int(tower.class_token)

    def fit(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if table.ndim != 3 or table.shape[2] != shape[2]:
            return table
        if tower.position_embedding == "sincos":
            return sincos_positions(tower.grid_size, tower.hidden_size, prefix).to(table.dtype)
        if prefix and _side(table.shape[1]):  # timm's `no_embed_class`
            table = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        if not _side(table.shape[1] - prefix):
            return table
        return resize_positions(table, (tower.grid_size, tower.grid_size), prefix, tower.interpolation)

    return fit


def axis_fit(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Resizes a table of rows or columns, `[1, n, dim]`, by linear interpolation."""
    if table.ndim != 3 or table.shape[2] != shape[2]:
        return table
    return torch.nn.functional.interpolate(table.transpose(1, 2), size=shape[1], mode="linear").transpose(1, 2)


def _side(positions: int) -> int:
    """Patches a side of a square grid; 0 if it is none."""
    side = math.isqrt(max(positions, 0))
    return side if side * side == positions else 0


def own_rules(config: VitConfig) -> tuple[Rule, ...]:
    """hfvlm's own keys, for another image size."""
    return (
        Rename(f"{TOWER}position_embedding", f"{TOWER}position_embedding", fit=position_fit(config.vision_config)),
        *(Rename(f"{TOWER}{axis}_embedding", f"{TOWER}{axis}_embedding", fit=axis_fit) for axis in ("row", "column")),
        Rename("{*rest}", "{*rest}"),
    )


def timm_rules(config: VitConfig) -> tuple[Rule, ...]:
    """timm's VisionTransformer, hybrids with its ResNetV2 included."""
    stem, stages = "patch_embed.backbone.", "stages.{s}.blocks.{b}."
    norm = "fc_norm" if config.vision_config.final_norm == "pooled" else "norm"
    stages_too = config.vision_config.stem_config is not None and config.vision_config.stem_config.depths
    root = "stem." if stages_too else ""  # a stem without stages is the backbone itself
    return (
        Rename("pos_embed", f"{TOWER}position_embedding", fit=position_fit(config.vision_config)),
        *(Rename(name, TOWER + name) for name in ("cls_token", "patch_embed.proj.{p}", "blocks.{*rest}")),
        Rename("norm_pre.{p}", f"{TOWER}pre_norm.{{p}}"),
        Rename(f"{norm}.{{p}}", f"{TOWER}norm.{{p}}"),
        Rename(f"{stem}{root}conv.{{p}}", f"{STEM}embedder.convolution.{{p}}"),
        Rename(f"{stem}{root}norm.{{p}}", f"{STEM}embedder.norm.{{p}}"),
        Rename(f"{stem}{stages}{{*rest}}", f"{STEM}encoder.stages.{{s}}.layers.{{b}}.{{*rest}}"),
        Rename("pre_logits.fc.{p}", "pre_logits.0.{p}"),
        Rename("head.{p}", "classifier.{p}"),
    )


def flax_tensors(arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Flax's arrays in torch's layout: `a/b/kernel` `[..., in, out]` -> `a.b.weight` `[out, in, ...]`, heads joined.

    The optimizer's and the tower's folders (`opt/target/`, `params/`, `img/`) are cut off, and blocks that are stacked
    along a first dimension are taken apart.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, array in arrays.items():
        name = re.sub(r"^(opt/target/|params/)?(img/)?", "", key)
        if "/encoderblock/" in name:
            parts = {name.replace("/encoderblock/", f"/encoderblock_{i}/"): part for i, part in enumerate(array)}
        else:
            parts = {name: array}
        for part, value in parts.items():
            part = part.replace("/", ".").removesuffix(".kernel").removesuffix(".scale")
            if key.endswith("/kernel"):
                part, value = f"{part}.weight", _kernel(part, value)
            elif key.endswith("/scale"):
                part, value = f"{part}.weight", value.flatten()
            elif key.endswith("/bias"):
                value = value.flatten()
            tensors[part] = value.contiguous()
    return tensors


def _kernel(layer: str, kernel: torch.Tensor) -> torch.Tensor:
    if layer.endswith((".query", ".key", ".value")):  # [dim, heads, head_dim]
        return kernel.flatten(1).t()
    if layer.endswith(".out"):  # [heads, head_dim, dim]
        return kernel.flatten(0, -2).t()
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.t()


def _flax_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """What releases number differently, as this one does."""
    block = "Transformer.encoderblock_0."
    parts = {key.removeprefix(block).split(".")[0] for key in tensors if key.startswith(block)}

    def named(start: str, otherwise: str) -> str:
        return max((part for part in parts if part.startswith(start)), default=otherwise)

    return {
        "attention": named("MultiHeadDotProductAttention", "MultiHeadDotProductAttention_1"),
        "mlp": named("MlpBlock", "MlpBlock_3"),
        "norm2": named("LayerNorm", "LayerNorm_2"),
        "positions": "pos_embedding" if "pos_embedding" in tensors else "Transformer.posembed_input.pos_embedding",
    }


def flax_rules(config: VitConfig, tensors: Mapping[str, torch.Tensor]) -> tuple[Rule, ...]:
    """The original's, as `flax_tensors` lays them out."""
    names, block, own = _flax_names(tensors), "Transformer.encoderblock_{i}.", f"{TOWER}blocks.{{i}}."
    stem = config.vision_config.stem_config
    units = [(s, u) for s, depth in enumerate(stem.depths if stem is not None else ()) for u in range(depth)]
    return (
        Rename(names["positions"], f"{TOWER}position_embedding", fit=position_fit(config.vision_config)),
        Rename("cls", f"{TOWER}cls_token"),
        Rename("embedding.{p}", f"{TOWER}patch_embed.proj.{{p}}"),
        Rename(f"{block}LayerNorm_0.{{p}}", f"{own}norm1.{{p}}"),
        Fuse(tuple(f"{block}{names['attention']}.{part}.{{p}}" for part in ATTENTION), f"{own}attn.qkv.{{p}}"),
        Rename(f"{block}{names['attention']}.out.{{p}}", f"{own}attn.proj.{{p}}"),
        Rename(f"{block}{names['norm2']}.{{p}}", f"{own}norm2.{{p}}"),
        Rename(f"{block}{names['mlp']}.Dense_0.{{p}}", f"{own}mlp.fc1.{{p}}"),
        Rename(f"{block}{names['mlp']}.Dense_1.{{p}}", f"{own}mlp.fc2.{{p}}"),
        Rename("Transformer.encoder_norm.{p}", f"{TOWER}norm.{{p}}"),
        Rename("pre_logits.{p}", "pre_logits.0.{p}"),
        Rename("head.{p}", "classifier.{p}"),
        Rename("conv_root.{p}", f"{STEM}embedder.convolution.{{p}}"),
        Rename("gn_root.{p}", f"{STEM}embedder.norm.{{p}}"),
        *(
            Rename(f"block{s + 1}.unit{u + 1}.{theirs}{{p}}", f"{STEM}encoder.stages.{s}.layers.{u}.{ours}{{p}}")
            for s, u in units
            for theirs, ours in {
                "conv_proj.": "downsample.conv.",
                "gn_proj.": "downsample.norm.",
                **{f"conv{n}.": f"conv{n}." for n in (1, 2, 3)},
                **{f"gn{n}.": f"norm{n}." for n in (1, 2, 3)},
            }.items()
        ),
    )


#: a layer's parts, as transformers calls them in its classes now, and in its folders
_IN_TREE_NOW = {
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_IN_TREE_SAVED = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def in_tree_rules(config: VitConfig, prefix: str, saved: bool = False, masked: bool = False) -> tuple[Rule, ...]:
    """transformers' ViT.

    Args:
        prefix: of its tower: "vit." under a head, "" in a `ViTModel`.
        saved: with the names of its folders instead of those of its classes.
        masked: of masked image modelling, whose mask token is kept.
    """
    layer = f"{prefix}encoder.layer.{{i}}." if saved else f"{prefix}layers.{{i}}."
    parts = tuple(
        f"{layer}attention.attention.{part}.{{p}}" if saved else f"{layer}attention.{part[0]}_proj.{{p}}"
        for part in ATTENTION
    )
    embeddings, own = f"{prefix}embeddings.", f"{TOWER}blocks.{{i}}."
    return (
        Rename(
            f"{embeddings}position_embeddings", f"{TOWER}position_embedding", fit=position_fit(config.vision_config)
        ),
        Rename(f"{embeddings}cls_token", f"{TOWER}cls_token"),
        Rename(f"{embeddings}patch_embeddings.projection.{{p}}", f"{TOWER}patch_embed.proj.{{p}}"),
        Fuse(parts, f"{own}attn.qkv.{{p}}"),
        *(
            Rename(f"{layer}{theirs}.{{p}}", f"{own}{ours}.{{p}}")
            for theirs, ours in (_IN_TREE_SAVED if saved else _IN_TREE_NOW).items()
        ),
        Rename(f"{prefix}layernorm.{{p}}", f"{TOWER}norm.{{p}}"),
        *(
            (Rename(f"{embeddings}mask_token", "mask_token"),)
            if masked
            else (Drop(f"{embeddings}mask_token", "of masked image modelling, which this model does not do"),)
        ),
    )


IN_TREE_POOLER = (Rename("pooler.dense.{p}", "pre_logits.0.{p}"),)
IN_TREE_CLASSIFIER = (
    Rename("classifier.{p}", "classifier.{p}"),
    Drop("vit.pooler.dense.{p}", "transformers' classifier reads the class token as it is"),
)
IN_TREE_DECODER = (
    Drop("decoder.{*rest}", "it paints pixels; the paper's head names colours"),
    Fresh("colour_head.{p}", "the head that names colours is learned anew"),
)


def release_fields(tensors: Mapping[str, torch.Tensor], flax: bool) -> dict[str, Any]:
    """Fields of a `VitConfig` that the shapes of timm's or the original's tensors tell.

    Args:
        tensors: of timm, or as `flax_tensors` gives them.

    Raises:
        ValueError: the position table is not that of a square grid.
    """
    shapes = Shapes(tensors, "")
    names = _flax_names(tensors) if flax else {}
    patch = "embedding.weight" if flax else "patch_embed.proj.weight"
    hidden = f"Transformer.encoderblock_0.{names['mlp']}.Dense_0.weight" if flax else "blocks.0.mlp.fc1.weight"
    class_token = ("cls" if flax else "cls_token") in tensors
    stem = _flax_stem(tensors) if flax else _timm_stem(tensors)
    size = (shapes.size(patch, 2) or 1) * (1 if stem is None else 2 ** (max(len(stem["depths"]), 1) + 1))
    width, pooled = shapes.size(patch, 0), "fc_norm.weight" in tensors
    tower = {
        "hidden_size": width,
        "num_attention_heads": WIDE.get(width) or heads_of_64(width),
        "intermediate_size": shapes.size(hidden, 0),
        "num_hidden_layers": shapes.count("blocks") if not flax else _count(tensors, "Transformer.encoderblock_"),
        "patch_size": size,
        "image_size": _image_size(tensors, names.get("positions", "pos_embed"), class_token, size),
        "num_channels": shapes.size(patch, 1) if stem is None else stem["num_channels"],
        "class_token": class_token,
        "pooling": "cls" if class_token and not pooled else "mean",
        "final_norm": "pooled" if pooled else "tokens",
        "patch_bias": patch.replace("weight", "bias") in tensors,
        "pre_norm": "norm_pre.weight" in tensors,
        "layer_norm_eps": 1e-5 if "norm_pre.weight" in tensors else None,  # CLIP's family
        "hidden_act": "gelu_pytorch_tanh" if flax else None,  # JAX's own GELU
        "stem_config": stem,
    }
    fields = {
        "num_labels": shapes.size("head.weight", 0),
        "representation_size": shapes.size("pre_logits.weight" if flax else "pre_logits.fc.weight", 0),
    }
    return {**known(fields), "vision_config": known(tower)}


def _image_size(tensors: Mapping[str, torch.Tensor], key: str, class_token: bool, patch: int) -> int | None:
    if key not in tensors or tensors[key].ndim != 3:
        return None
    positions = tensors[key].shape[1]
    side = (_side(positions - 1) if class_token else 0) or _side(positions)
    if not side:
        raise ValueError(f"{key} has {positions} positions: not a square grid, with a class token or without")
    return side * patch


def _count(tensors: Mapping[str, torch.Tensor], start: str) -> int | None:
    """How many numbers follow `start` in the keys; they are assumed to be consecutive."""
    found = {match[1] for key in tensors if (match := re.match(re.escape(start) + r"(\d+)\.", key))}
    return len(found) or None


def _stem(depths: list[int], root: torch.Tensor, outs: list[torch.Tensor]) -> dict[str, Any]:
    return {
        **bit_stem(*depths),
        "embedding_size": root.shape[0],
        "num_channels": root.shape[1],
        "hidden_sizes": [out.shape[0] for out in outs],
    }


def _timm_stem(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    start = "patch_embed.backbone."
    root = next((key for key in (f"{start}stem.conv.weight", f"{start}conv.weight") if key in tensors), None)
    if root is None:
        return None
    stages = range(_count(tensors, f"{start}stages.") or 0)
    depths = [_count(tensors, f"{start}stages.{s}.blocks.") or 0 for s in stages]
    outs = [tensors[f"{start}stages.{s}.blocks.0.conv3.weight"] for s in stages]
    return _stem(depths, tensors[root], outs)


def _flax_stem(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    if "conv_root.weight" not in tensors:
        return None
    stages = range(_count(tensors, "block") or 0)
    depths = [_count(tensors, f"block{s + 1}.unit") or 0 for s in stages]
    return _stem(depths, tensors["conv_root.weight"], [tensors[f"block{s + 1}.unit1.conv3.weight"] for s in stages])


def flax_heads(arrays: Mapping[str, torch.Tensor]) -> int | None:
    """Attention heads, which Flax's kernels keep apart."""
    kernels = [array for key, array in arrays.items() if key.endswith("/query/kernel")]
    return kernels[0].shape[-2] if kernels else None


def in_tree_fields(config: Mapping[str, Any], pooler: bool) -> dict[str, Any]:
    """Fields of a `VitConfig` in a transformers `config.json`.

    Args:
        pooler: the model has a pooler, which is the layer before a classifier here.

    Raises:
        ValueError: images or patches are not square, or the pooler's activation is not tanh.
    """
    theirs = transformers.ViTConfig.from_dict(dict(config))
    if pooler and theirs.pooler_act != "tanh":
        raise ValueError(f"pooler_act is {theirs.pooler_act!r}: only tanh can be converted")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return {
        "vision_config": {
            **{name: getattr(theirs, name) for name in (*names, "layer_norm_eps", "num_channels")},
            "hidden_dropout_prob": float(theirs.hidden_dropout_prob),
            "attention_dropout": float(theirs.attention_probs_dropout_prob),
            "initializer_range": theirs.initializer_range,
            "image_size": square(theirs.image_size, "image_size"),
            "patch_size": square(theirs.patch_size, "patch_size"),
        },
        "representation_size": theirs.pooler_output_size if pooler else None,
        "id2label": theirs.id2label,
        "label2id": theirs.label2id or {label: i for i, label in theirs.id2label.items()},
        "problem_type": theirs.problem_type,
    }


#: what transformers' ViT has no choice in
_IN_TREE_FIXED = {
    "class_token": True,
    "pooling": "cls",
    "patch_bias": True,
    "pre_norm": False,
    "final_norm": "tokens",
    "stem_config": None,
}


def in_tree_config(config: VitConfig) -> transformers.ViTConfig:
    """The transformers configuration of a ViT.

    Raises:
        ValueError: its tower has no place there; names every field that is in the way.
    """
    tower = config.vision_config
    wrong = [name for name, value in _IN_TREE_FIXED.items() if getattr(tower, name) != value]
    if tower.position_embedding == "factorised":
        wrong.append("position_embedding")
    if wrong:
        raise ValueError(f"transformers' ViT has no place for this model's vision_config: {', '.join(wrong)}")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    return transformers.ViTConfig(
        **{name: getattr(tower, name) for name in (*names, "layer_norm_eps", "num_channels", "initializer_range")},
        hidden_dropout_prob=tower.hidden_dropout_prob,
        attention_probs_dropout_prob=tower.attention_dropout,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        encoder_stride=tower.patch_size,
        pooler_output_size=config.representation_size,
        **{name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")},
    )
