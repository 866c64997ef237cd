"""A ViT in a page, from timm's names and the paper's equations: what converted weights must reproduce."""

import numpy as np
import torch
from torch.nn import functional as F


def weights(
    dim: int = 24,
    depth: int = 2,
    patch: int = 8,
    grid: int = 4,
    labels: int = 5,
    *,
    class_token: bool = True,
    pooled_norm: bool = False,
    pre_norm: bool = False,
    representation: int | None = None,
    stages: tuple[int, ...] = (),
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random weights under timm's names; `stages` makes a hybrid, whose patches are cut from the last stage's map;
    `pre_norm` one of CLIP's family."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        made[name] = centre + 0.15 * torch.randn(shape, generator=generator)

    def layer(name: str, *shape: int) -> None:
        draw(f"{name}.weight", *shape)
        draw(f"{name}.bias", shape[0])

    channels = 3
    if stages:
        start = "patch_embed.backbone."
        draw(f"{start}stem.conv.weight", 64, 3, 7, 7)
        layer(f"{start}stem.norm", 64)
        channels = 64
        for s, blocks in enumerate(stages):
            out = 256 * 2**s
            for b in range(blocks):
                block = f"{start}stages.{s}.blocks.{b}."
                if b == 0:
                    draw(f"{block}downsample.conv.weight", out, channels, 1, 1)
                    layer(f"{block}downsample.norm", out)
                sizes = ((out // 4, channels, 1), (out // 4, out // 4, 3), (out, out // 4, 1))
                for n, (to, read, kernel) in enumerate(sizes, start=1):
                    draw(f"{block}conv{n}.weight", to, read, kernel, kernel)
                    layer(f"{block}norm{n}", to)
                channels = out
    layer("patch_embed.proj", dim, channels, patch, patch)
    if class_token:
        draw("cls_token", 1, 1, dim)
    if pre_norm:
        layer("norm_pre", dim)
    draw("pos_embed", 1, grid * grid + int(class_token), dim)
    for i in range(depth):
        block = f"blocks.{i}."
        layer(f"{block}norm1", dim)
        layer(f"{block}attn.qkv", 3 * dim, dim)
        layer(f"{block}attn.proj", dim, dim)
        layer(f"{block}norm2", dim)
        layer(f"{block}mlp.fc1", 2 * dim, dim)
        layer(f"{block}mlp.fc2", dim, 2 * dim)
    layer("fc_norm" if pooled_norm else "norm", dim)
    if representation:
        layer("pre_logits.fc", representation, dim)
    if labels:
        layer("head", labels, representation or dim)
    return made


def forward(w: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int, gelu: str = "none") -> torch.Tensor:
    """Class scores, or the pooled vector of weights without a head.

    Args:
        gelu: its approximation: "none" as in torch, "tanh" as in JAX, "sigmoid" as in OpenAI's CLIP.
    """
    if "patch_embed.backbone.stem.conv.weight" in w:
        pixels = _feature_map(w, pixels)
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    if "cls_token" in w:
        x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + w["pos_embed"]
    if "norm_pre.weight" in w:
        x = _norm(w, "norm_pre", x)
    for i in range(sum(key.endswith("norm1.weight") and key.startswith("blocks.") for key in w)):
        block = f"blocks.{i}."
        q, k, v = _linear(w, f"{block}attn.qkv", _norm(w, f"{block}norm1", x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + _linear(w, f"{block}attn.proj", seen.transpose(1, 2).flatten(2))
        inner = _linear(w, f"{block}mlp.fc1", _norm(w, f"{block}norm2", x))
        inner = inner * (1.702 * inner).sigmoid() if gelu == "sigmoid" else F.gelu(inner, approximate=gelu)
        x = x + _linear(w, f"{block}mlp.fc2", inner)
    if "fc_norm.weight" in w:
        x = _norm(w, "fc_norm", x[:, int("cls_token" in w) :].mean(1))
    elif "cls_token" in w:
        x = _norm(w, "norm", x)[:, 0]
    else:
        x = _norm(w, "norm", x).mean(1)
    if "pre_logits.fc.weight" in w:
        x = _linear(w, "pre_logits.fc", x).tanh()
    return _linear(w, "head", x) if "head.weight" in w else x


def _linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w, name, x):
    eps = 1e-5 if "norm_pre.weight" in w else 1e-6
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=eps)


def _same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's padding, the odd pixel on the right and below."""
    missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
    rows, columns = missing
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _conv(w, name, x, stride=1):
    kernel = w[f"{name}.weight"]
    mean, var = kernel.mean((1, 2, 3), keepdim=True), kernel.var((1, 2, 3), unbiased=False, keepdim=True)
    return F.conv2d(_same(x, kernel.shape[-1], stride), (kernel - mean) / (var + 1e-8).sqrt(), stride=stride)


def _group(w, name, x):
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def _feature_map(w, x):
    start = "patch_embed.backbone."
    x = _group(w, f"{start}stem.norm", _conv(w, f"{start}stem.conv", x, 2)).relu()
    x = F.max_pool2d(_same(x, 3, 2), 3, 2)
    blocks = {tuple(key.split(".")[3:6:2]) for key in w if key.startswith(f"{start}stages.")}
    for s, b in sorted((int(s), int(b)) for s, b in blocks):
        block, stride = f"{start}stages.{s}.blocks.{b}.", 2 if s > 0 and b == 0 else 1
        y = _group(w, f"{block}norm1", _conv(w, f"{block}conv1", x)).relu()
        y = _group(w, f"{block}norm2", _conv(w, f"{block}conv2", y, stride)).relu()
        y = _group(w, f"{block}norm3", _conv(w, f"{block}conv3", y))
        if b == 0:
            x = _group(w, f"{block}downsample.norm", _conv(w, f"{block}downsample.conv", x, stride))
        x = (x + y).relu()
    return x


def flax_arrays(
    w: dict[str, torch.Tensor], heads: int, prefix: str = "", newer: bool = False
) -> dict[str, np.ndarray]:
    """The same weights as the original release stores them.

    Args:
        prefix: folder that the training script put before every name.
        newer: with the layers' numbers of later releases.
    """
    attention = "MultiHeadDotProductAttention_" + ("0" if newer else "1")
    mlp, norm2 = "MlpBlock_" + ("0" if newer else "3"), "LayerNorm_" + ("1" if newer else "2")
    layers = {
        "patch_embed.proj": "embedding",
        "norm": "Transformer/encoder_norm",
        "pre_logits.fc": "pre_logits",
        "head": "head",
        "patch_embed.backbone.stem.conv": "conv_root",
        "patch_embed.backbone.stem.norm": "gn_root",
        "norm1": "LayerNorm_0",
        "norm2": norm2,
        "attn.proj": f"{attention}/out",
        "mlp.fc1": f"{mlp}/Dense_0",
        "mlp.fc2": f"{mlp}/Dense_1",
    }
    arrays: dict[str, np.ndarray] = {}
    for key, value in w.items():
        layer, _, kind = key.rpartition(".")
        if key == "cls_token":
            arrays["cls"] = value.numpy()
        elif key == "pos_embed":
            arrays["pos_embedding" if newer else "Transformer/posembed_input/pos_embedding"] = value.numpy()
        elif layer.endswith("attn.qkv"):
            block = f"Transformer/encoderblock_{layer.split('.')[1]}/{attention}"
            for name, part in zip(("query", "key", "value"), value.chunk(3)):
                split = part.unflatten(0, (heads, -1))  # [heads, head_dim, (dim)]
                kept = split if kind == "bias" else split.permute(2, 0, 1)
                arrays[f"{block}/{name}/{'bias' if kind == 'bias' else 'kernel'}"] = kept.numpy()
        else:
            name, value = _flax_name(layer, layers), value
            if kind == "bias":
                arrays[f"{name}/bias"] = value.view(1, 1, 1, -1).numpy() if "gn" in name else value.numpy()
            elif value.ndim == 1:
                arrays[f"{name}/scale"] = value.view(1, 1, 1, -1).numpy() if "gn" in name else value.numpy()
            elif name.endswith("/out"):
                arrays[f"{name}/kernel"] = value.t().unflatten(0, (heads, -1)).numpy()
            else:
                arrays[f"{name}/kernel"] = (value.permute(2, 3, 1, 0) if value.ndim == 4 else value.t()).numpy()
    return {prefix + name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _flax_name(layer: str, layers: dict[str, str]) -> str:
    if layer in layers:
        return layers[layer]
    parts = layer.split(".")
    if parts[0] == "blocks":
        return f"Transformer/encoderblock_{parts[1]}/{layers['.'.join(parts[2:])]}"
    stage, block, rest = int(parts[3]) + 1, int(parts[5]) + 1, parts[6:]
    if rest[0] == "downsample":
        name = "conv_proj" if rest[1] == "conv" else "gn_proj"
    else:
        name = rest[0].replace("norm", "gn")
    return f"block{stage}/unit{block}/{name}"
