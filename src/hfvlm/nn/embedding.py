"""Images into patch tokens, and position tables that follow the image size."""

import math

import torch
from torch import nn

from hfvlm.nn.linear import linear


class PatchProjection(nn.Conv2d):
    """`nn.Conv2d` whose stride is its kernel; on CPU a matrix product, which rearranges no weights.

    It is a layer of its own, so that it is called like any other: hooks hear it, and offloaded weights come.
    """

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, h, w]` -> `[batch, dim, h / patch_size, w / patch_size]`."""
        size = self.kernel_size[0]
        batch, channels, height, width = pixel_values.shape
        if pixel_values.device.type != "cpu" or torch.compiler.is_compiling() or height % size or width % size:
            return super().forward(pixel_values)
        rows, columns = height // size, width // size
        patches = pixel_values.reshape(batch, channels, rows, size, columns, size)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
        return linear(patches, self.weight.flatten(1), self.bias).transpose(1, 2).unflatten(2, (rows, columns))


class PatchEmbedding(nn.Module):
    """Cuts an image into square patches and projects each: `[batch, channels, h, w]` -> `[batch, patches, dim]`."""

    def __init__(self, patch_size: int, channels: int, dim: int, bias: bool = True):
        super().__init__()
        self.proj = PatchProjection(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


def resize_positions(
    table: torch.Tensor, grid: tuple[int, int], prefix_tokens: int = 1, mode: str = "bicubic"
) -> torch.Tensor:
    """Resizes a learned table of a square grid to another grid (half-pixel centres, no antialiasing).

    Args:
        table: `[1, prefix_tokens + n * n, dim]`.
        grid: rows and columns wanted.
        prefix_tokens: entries at the front that belong to no patch (the class token); they stay as they are.
        mode: "bicubic" or "bilinear".

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
    patches = nn.functional.interpolate(patches, size=grid, mode=mode, align_corners=False)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)


def sincos_positions(grid: int, dim: int, prefix_tokens: int = 0) -> torch.Tensor:
    """Fixed positions of a square grid, as in MoCo v3 (https://arxiv.org/abs/2104.02057): a quarter of the width each
    for sine and cosine of the row, sine and cosine of the column; zeros for the prefix.

    Returns:
        `[1, prefix_tokens + grid * grid, dim]`, fp32.
    """
    places = torch.arange(grid, dtype=torch.float32)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(prefix_tokens, dim), table])[None]


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
    if (
        pixel_values.device.type == "cpu"  # elsewhere the answer would have to be waited for
        and not torch.compiler.is_compiling()
        and not math.isfinite(pixel_values.detach().sum(dtype=torch.float32))
    ):
        raise ValueError("pixel_values hold NaN or infinity; look for a broken image among the batch's")
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
