"""Where in an image a text is: maps of a fusion layer's cross-attention, weighted by what a match owes to it.

Grad-CAM, https://arxiv.org/abs/1610.02391, of cross-attention as in Align before Fuse, https://arxiv.org/abs/2107.07651.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import ModelOutput

from hfvlm.fusion import first_tokens


#: colours of a map from nothing to most, evenly spaced
COLOURS = ((0, 0, 128), (0, 64, 255), (0, 255, 255), (128, 255, 128), (255, 255, 0), (255, 64, 0), (128, 0, 0))


@dataclass
class GroundingMaps(ModelOutput):
    """What `ground` returns.

    Args:
        tokens: `[rows, length, grid, grid]`, not negative: a map of each token; of padding, zeros.
        text: `[rows, grid, grid]`: the mean over the text's tokens.
        itm_logits: `[rows, 2]`, no match and match.
    """

    tokens: torch.FloatTensor | None = None
    text: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None


def ground(
    model: Any,
    pixel_values: torch.FloatTensor,
    input_ids: torch.LongTensor,
    attention_mask: torch.LongTensor | None = None,
    layer: int | None = None,
    memory_index: torch.LongTensor | None = None,
    interpolate_pos_encoding: bool = False,
) -> GroundingMaps:
    """Where in its image each text is: the attention of a layer times the gradient of the match logit, if positive.

    ```python
    >>> maps = ground(model, **processor(images=[photo], text=["a dog on the grass"]))
    >>> draw_map(photo, maps.text[0]).save("dog.png")
    ```

    The model is in evaluation mode meanwhile, and no parameter gets a gradient.

    Args:
        model: a retrieval head of a fusion model (ALBEF, BLIP).
        pixel_values: `[images, channels, h, w]`.
        input_ids, attention_mask: `[images * g, length]`: `g` texts an image, an image's texts together.
        layer: number of the text tower's layer, from 0; None: two thirds up, of 12 layers number 8, as in the paper.
        memory_index: `[rows]`, the image of each text; None: as many texts an image, in order.
        interpolate_pos_encoding: take images of another size.

    Raises:
        TypeError: a model that does not judge pairs.
        ValueError: a layer that does not look at images; texts that cannot be shared out among the images; an image
            tower whose tokens are no grid.
    """
    if not hasattr(model, "match"):
        raise TypeError(
            f"{type(model).__name__} does not judge pairs of images and texts: use a retrieval head, such as "
            "AlbefForImageTextRetrieval"
        )
    layer = fusing_layer(model, layer)
    training, texts = model.training, model.text_model
    attention = texts.config._attn_implementation
    model.eval()
    texts.config._attn_implementation = "eager"  # the only one that has weights
    kept: list[torch.Tensor] = []
    hook = texts.layers[layer].cross_attention.register_forward_hook(lambda module, args, out: kept.append(out[1]))
    try:
        with torch.no_grad():
            seen = model.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        memory = _memory_of_rows(seen.last_hidden_state, len(input_ids), memory_index)
        with torch.enable_grad():
            # the gradient of the weights must exist where all parameters are frozen, too
            fused = model.fuse(memory.detach().requires_grad_(), input_ids, attention_mask)
            logits = model.itm_head(first_tokens(fused.last_hidden_state, attention_mask))
            (gradient,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    finally:
        hook.remove()
        texts.config._attn_implementation = attention
        model.train(training)
    with torch.no_grad():
        grid = grid_of(model.config.vision_config, pixel_values.shape[-2:], memory.shape[1])
        heat = (kept[0] * gradient.clamp(min=0)).float().mean(dim=1)  # [rows, length, tokens]
        real = heat.new_ones(heat.shape[:2]) if attention_mask is None else attention_mask.to(heat)
        patches = heat[..., -grid[0] * grid[1] :] * real[..., None]
        maps = patches.unflatten(-1, grid)
        text = maps.sum(dim=1) / real.sum(dim=1)[:, None, None]
    return GroundingMaps(tokens=maps, text=text, itm_logits=logits.detach())


def fusing_layer(model: Any, layer: int | None = None) -> int:
    """The number of a layer that looks at images: the one asked for, or two thirds up.

    Raises:
        ValueError: there is no such layer, or it reads the text alone.
    """
    count, first = len(model.text_model.layers), model.config.text_config.fusion_layer
    if layer is None:
        return max(first, 2 * count // 3)
    if not first <= layer < count:
        raise ValueError(f"layer must be between {first} and {count - 1}, those that look at the image, got {layer}")
    return layer


def _memory_of_rows(tokens: torch.Tensor, rows: int, index: torch.Tensor | None) -> torch.Tensor:
    """An image's tokens for each text, `[rows, tokens, width]`: the weights of a text are its own then."""
    images = len(tokens)
    if index is None:
        if rows % images:
            raise ValueError(f"{rows} texts cannot be shared out evenly among {images} images: pass memory_index")
        return tokens.repeat_interleave(rows // images, dim=0)
    if index.shape != (rows,):
        raise ValueError(f"memory_index must be [{rows}], one a text, got {list(index.shape)}")
    return tokens[index]


def grid_of(config: Any, size: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Rows and columns of an image tower's last tokens; what goes before them, a class token, has no place.

    Args:
        config: of the tower.
        size: height and width of the image.
        tokens: how many the tower gives.

    Raises:
        ValueError: they are no grid.
    """
    height, width = size
    patch = getattr(config, "patch_size", None)
    if patch:
        grid = height // patch, width // patch
    else:
        rows = max(1, round((tokens * height / width) ** 0.5))
        grid = rows, tokens // rows
    if grid[0] * grid[1] > tokens or (not patch and grid[0] * grid[1] != tokens):
        raise ValueError(f"the image tower's {tokens} tokens are no grid over an image of {height} x {width} pixels")
    return grid


def draw_map(image: Image.Image, heat: Any, opacity: float = 0.5) -> Image.Image:
    """The image with a map over it, blue where there is nothing and red where there is most.

    Args:
        image: the photo that was squeezed into the model's square as a whole.
        heat: `[grid, grid]`, a tensor or an array, not negative; its largest number is red.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: a map of another shape, one with numbers that are not finite, or an opacity out of range.
    """
    heat = heat.detach().float().cpu().numpy() if isinstance(heat, torch.Tensor) else np.asarray(heat, np.float32)
    if heat.ndim != 2:
        raise ValueError(f"a map must be [grid, grid], got {list(heat.shape)}: take one of a text, or of a token")
    if not np.isfinite(heat).all():
        raise ValueError("the map has numbers that are not finite: the model's weights are broken, or its precision")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be between 0 and 1, got {opacity}")
    photo = image.convert("RGB")
    heat = heat.astype(np.float32) / max(float(heat.max()), 1e-20)
    smooth = np.asarray(Image.fromarray(heat).resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(smooth, stops, channel) for channel in zip(*COLOURS)], axis=-1)
    mixed = (1 - opacity) * np.asarray(photo, np.float32) + opacity * colours
    return Image.fromarray(mixed.round().astype(np.uint8))
