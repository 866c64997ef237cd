"""Key rules and geometry of the towers that many releases share: timm's ViT, and BERT as transformers names it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hfvlm.conversion.rules import Drop, Fuse, Rename, Rule
from hfvlm.nn.embedding import resize_positions


def fit_positions(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Resizes a ViT's position table `[1, 1 + n * n, dim]` to another grid; left alone if the widths differ."""
    side = math.isqrt(shape[1] - 1)
    if table.ndim != 3 or table.shape[2] != shape[2] or math.isqrt(table.shape[1] - 1) ** 2 != table.shape[1] - 1:
        return table
    return resize_positions(table, (side, side))


def vit_rules(source: str, target: str) -> tuple[Rule, ...]:
    """timm's (0.4) VisionTransformer under the prefix `source` -> `VitTower` under the prefix `target`."""
    return (
        Rename(f"{source}pos_embed", f"{target}position_embedding", fit=fit_positions),
        *(
            Rename(source + name, target + name)
            for name in ("cls_token", "patch_embed.proj.{p}", "blocks.{*rest}", "norm.{p}")
        ),
    )


def bert_rules(source: str, target: str, attention: str = "attention") -> tuple[Rule, ...]:
    """transformers' BertModel (`embeddings.*`, `encoder.layer.*`), with cross-attention or not -> `BertTower`.

    The word embeddings are left to the caller: a head may store them again.

    Args:
        attention: what the self-attention is called in the tower: "causal_attention" that of a decoder.
    """
    return (
        Drop(f"{source}embeddings.position_ids", "0, 1, 2, ...: counted when needed"),
        Rename(f"{source}embeddings.position_embeddings.weight", f"{target}embeddings.position.weight"),
        Rename(f"{source}embeddings.token_type_embeddings.weight", f"{target}embeddings.token_type.weight"),
        Rename(f"{source}embeddings.LayerNorm.{{p}}", f"{target}embeddings.norm.{{p}}"),
        *bert_layer_rules(f"{source}encoder.layer.{{i}}.", f"{target}layers.{{i}}.", attention),
    )


def bert_layer_rules(layer: str, own: str, attention: str = "attention") -> tuple[Rule, ...]:
    """One layer of transformers' BertModel -> `BertLayer`.

    Args:
        layer, own: prefixes of the two; `{i}` in both stands for any layer.
        attention: as in `bert_rules`.
    """
    query, key, value = (f"self.{name}.{{p}}" for name in ("query", "key", "value"))
    return (
        Fuse(tuple(f"{layer}attention.{name}" for name in (query, key, value)), f"{own}{attention}.qkv.{{p}}"),
        Rename(f"{layer}attention.output.dense.{{p}}", f"{own}{attention}.proj.{{p}}"),
        Rename(f"{layer}attention.output.LayerNorm.{{p}}", f"{own}{attention}_norm.{{p}}"),
        Rename(f"{layer}crossattention.{query}", f"{own}cross_attention.q.{{p}}"),
        Fuse(tuple(f"{layer}crossattention.{name}" for name in (key, value)), f"{own}cross_attention.kv.{{p}}"),
        Rename(f"{layer}crossattention.output.dense.{{p}}", f"{own}cross_attention.proj.{{p}}"),
        Rename(f"{layer}crossattention.output.LayerNorm.{{p}}", f"{own}cross_attention_norm.{{p}}"),
        Rename(f"{layer}intermediate.dense.{{p}}", f"{own}mlp.fc1.{{p}}"),
        Rename(f"{layer}output.dense.{{p}}", f"{own}mlp.fc2.{{p}}"),
        Rename(f"{layer}output.LayerNorm.{{p}}", f"{own}mlp_norm.{{p}}"),
    )


def bert_lm_rules(source: str, target: str, head: str, attention: str = "causal_attention") -> tuple[Rule, ...]:
    """transformers' BertLMHeadModel (`bert.*`, `cls.predictions.*`) -> `BertTower` and `BertLmHead`."""
    scores, words = f"{source}cls.predictions.", "embeddings.word_embeddings.weight"
    return (
        Rename(  # tied on both sides
            (f"{source}bert.{words}", f"{scores}decoder.weight"),
            (f"{target}embeddings.word.weight", f"{head}decoder.weight"),
        ),
        Rename((f"{scores}bias", f"{scores}decoder.bias"), f"{head}decoder.bias"),
        Rename(f"{scores}transform.dense.{{p}}", f"{head}dense.{{p}}"),
        Rename(f"{scores}transform.LayerNorm.{{p}}", f"{head}norm.{{p}}"),
        *bert_rules(f"{source}bert.", target, attention),
    )


def fit_pool_positions(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """As `fit_positions`, for the table `[1 + n * n, dim]` of CLIP's attention pooling."""
    if table.ndim != 2 or len(shape) != 2:
        return table
    return fit_positions(table[None], torch.Size([1, *shape]))[0]


def resnet_rules(source: str, target: str) -> tuple[Rule, ...]:
    """torchvision's ResNet, or CLIP's modified one, under the prefix `source` -> `ResNetTower` under `target`.

    A classifier (`fc`) is left to the caller.
    """
    both = (("conv", "conv"), ("bn", "norm"))
    rules = [
        Rename(f"{source}{theirs}{n}.{{p}}", f"{target}stem.{n - 1}.{ours}.{{p}}")
        for n in (1, 2, 3)
        for theirs, ours in both
    ]
    for stage in range(4):
        block, own = f"{source}layer{stage + 1}.{{i}}.", f"{target}stages.{stage}.{{i}}."
        for n in (1, 2, 3):
            rules += [Rename(f"{block}{theirs}{n}.{{p}}", f"{own}conv{n}.{ours}.{{p}}") for theirs, ours in both]
        rules.append(Rename(f"{block}downsample.0.{{p}}", f"{own}shortcut.conv.{{p}}"))
        rules.append(Rename(f"{block}downsample.1.{{p}}", f"{own}shortcut.norm.{{p}}"))
    theirs, ours = f"{source}attnpool.", f"{target}attention_pool."
    return (
        *rules,
        Rename(f"{theirs}positional_embedding", f"{ours}position_embedding", fit=fit_pool_positions),
        Rename(f"{theirs}q_proj.{{p}}", f"{ours}q.{{p}}"),
        Fuse((f"{theirs}k_proj.{{p}}", f"{theirs}v_proj.{{p}}"), f"{ours}kv.{{p}}"),
        Rename(f"{theirs}c_proj.{{p}}", f"{ours}proj.{{p}}"),
    )


class Shapes:
    """Sizes read off the tensors under a prefix; what is not there to be read is left out.

    Args:
        tensors: the source's.
        prefix: of one tower.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str):
        self.tensors, self.prefix = tensors, prefix

    def size(self, name: str, dim: int) -> int | None:
        tensor = self.tensors.get(self.prefix + name)
        return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else None

    def count(self, layers: str) -> int | None:
        """The number of layers numbered from 0 whose keys start with `layers`."""
        numbers = re.compile(re.escape(self.prefix + layers) + r"\.(\d+)\.")
        found = {int(match[1]) for key in self.tensors if (match := numbers.match(key))}
        return max(found) + 1 if found else None


def known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that shapes told: without those that are None."""
    return {name: value for name, value in fields.items() if value is not None}


def heads_of_64(width: int | None) -> int | None:
    """Heads of 64, as most published sizes have; None where that cannot be."""
    return width // 64 if width and width % 64 == 0 else None


def square(size: int | Sequence[int], name: str) -> int:
    """A side of a square.

    Raises:
        ValueError: it is none; calls it `name`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"{name} is {height}x{width}: only squares can be converted")
    return height


def vit_geometry(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, int]:
    """Fields of a `VitTowerConfig` that timm's ViT under `prefix` tells.

    Raises:
        ValueError: the position table is not that of a square grid.
    """
    shapes = Shapes(tensors, prefix)
    width, patch = shapes.size("patch_embed.proj.weight", 0), shapes.size("patch_embed.proj.weight", 2)
    positions, image_size = shapes.size("pos_embed", 1), None
    if positions and patch:
        side = math.isqrt(positions - 1)
        if side * side != positions - 1:
            raise ValueError(f"{prefix}pos_embed has {positions} positions: not a class token and a square grid")
        image_size = side * patch
    return known(
        {
            "hidden_size": width,
            "num_attention_heads": heads_of_64(width),
            "intermediate_size": shapes.size("blocks.0.mlp.fc1.weight", 0),
            "num_hidden_layers": shapes.count("blocks"),
            "num_channels": shapes.size("patch_embed.proj.weight", 1),
            "patch_size": patch,
            "image_size": image_size,
        }
    )


def bert_geometry(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, int]:
    """Fields of a `BertTowerConfig` that transformers' BertModel under `prefix` tells."""
    shapes = Shapes(tensors, prefix)
    width = shapes.size("embeddings.word_embeddings.weight", 1)
    return known(
        {
            "vocab_size": shapes.size("embeddings.word_embeddings.weight", 0),
            "hidden_size": width,
            "num_attention_heads": heads_of_64(width),
            "intermediate_size": shapes.size("encoder.layer.0.intermediate.dense.weight", 0),
            "num_hidden_layers": shapes.count("encoder.layer"),
            "max_position_embeddings": shapes.size("embeddings.position_embeddings.weight", 0),
            "encoder_hidden_size": shapes.size("encoder.layer.0.crossattention.self.key.weight", 1),
        }
    )


def resnet_geometry(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Fields of a `ResNetTowerConfig` that torchvision's or CLIP's ResNet under `prefix` tells.

    Raises:
        ValueError: the positions of its attention pooling are not those of a square grid.
    """
    shapes = Shapes(tensors, prefix)
    width, positions = shapes.size("layer1.0.conv1.weight", 0), shapes.size("attnpool.positional_embedding", 0)
    depths = [shapes.count(f"layer{stage}") for stage in (1, 2, 3, 4)]
    fields = {
        "depths": None if None in depths else depths,
        "width": width,
        "bottleneck": shapes.size("layer1.0.conv3.weight", 0) is not None,
        "modified": shapes.size("conv3.weight", 0) is not None,
        "num_channels": shapes.size("conv1.weight", 1),
    }
    if positions:
        side = math.isqrt(positions - 1)
        if side * side != positions - 1:
            raise ValueError(
                f"{prefix}attnpool.positional_embedding has {positions} positions: not a mean token and a square grid"
            )
        fields.update(
            pooling="attention",
            image_size=32 * side,
            output_dim=shapes.size("attnpool.c_proj.weight", 0),
            num_attention_heads=heads_of_64(32 * width) if width else None,
        )
    return known(fields)
