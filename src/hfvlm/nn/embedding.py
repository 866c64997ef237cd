"""Images into patch tokens, and position tables that follow the image size."""

import torch
from torch import nn


class PatchEmbedding(nn.Module):
    """Cuts an image into square patches and projects each: `[batch, channels, h, w]` -> `[batch, patches, dim]`."""

    def __init__(self, patch_size: int, channels: int, dim: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


def resize_positions(table: torch.Tensor, grid: tuple[int, int], prefix_tokens: int = 1) -> torch.Tensor:
    """Resizes a learned table of a square grid to another grid, bicubic (half-pixel centres, no antialiasing).

    Args:
        table: `[1, prefix_tokens + n * n, dim]`.
        grid: rows and columns wanted.
        prefix_tokens: entries at the front that belong to no patch (the class token); they stay as they are.

    Returns:
        `[1, prefix_tokens + rows * columns, dim]`.
    """
    prefix, patches = table[:, :prefix_tokens], table[:, prefix_tokens:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise ValueError(f"a position table of {patches.shape[1]} patches is not a square grid: it cannot be resized")
    if grid == (side, side):
        return table
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)


def check_pixels(
    pixel_values: torch.Tensor, channels: int, image_size: int | None, patch_size: int | None = None
) -> None:
    """Refuses pixels that a tower cannot read, and says what it wants instead.

    Args:
        channels: what the tower was built for.
        image_size: height and width wanted; None: any.
        patch_size: what must divide them; None: nothing.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(
            f"pixel_values must be a tensor, got {type(pixel_values).__name__}; the processor makes them of images"
        )
    if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
        raise ValueError(
            f"pixel_values must have shape [batch, {channels}, height, width], got {list(pixel_values.shape)}; "
            "the processor makes them"
        )
    if not pixel_values.is_floating_point():
        raise TypeError(
            f"pixel_values must be floating point, got {pixel_values.dtype}; the processor rescales and normalises"
        )
    if image_size is not None and tuple(pixel_values.shape[2:]) != (image_size, image_size):
        raise ValueError(
            f"pixel_values are {pixel_values.shape[2]}x{pixel_values.shape[3]}, this model takes "
            f"{image_size}x{image_size}; resize them, or pass interpolate_pos_encoding=True"
        )
    if patch_size is not None and any(side == 0 or side % patch_size for side in pixel_values.shape[2:]):
        raise ValueError(
            f"pixel_values are {pixel_values.shape[2]}x{pixel_values.shape[3]}, which cannot be cut into patches of "
            f"{patch_size}x{patch_size}; resize them to multiples of the patch size {patch_size}"
        )
