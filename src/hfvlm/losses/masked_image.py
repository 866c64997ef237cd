"""Masked patch prediction: which patches are chosen, what becomes of them, and the colours to predict.

An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929, appendix B.1.2.
"""

import torch
from torch import nn


def _uniform(batch: int, patches: int, device: torch.device, seed: int | None) -> torch.Tensor:
    """Random numbers in [0, 1), `[batch, patches]`; with a seed the same ones in every row.

    Those of a seed are mixed of the patches' numbers by integer arithmetic: they are the same on every device, and a
    graph can hold them, which it cannot a generator.
    """
    if seed is None:
        return torch.rand(batch, patches, device=device)
    bits = torch.arange(patches, device=device) + ((1 + seed) << 20)
    for _ in range(3):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((bits >> 8).float() / 2**24).expand(batch, -1)


def choose_patches(
    batch: int, patches: int, ratio: float, device: torch.device, seed: int | None = None
) -> torch.Tensor:
    """Chooses `ratio` of each image's patches, at least one: `[batch, patches]`, bool.

    Args:
        seed: draw from this one, the same for every image; None: from torch's random numbers, each image its own.
    """
    count = max(1, round(ratio * patches))
    order = _uniform(batch, patches, device, seed).argsort(dim=1)
    return torch.zeros(batch, patches, dtype=torch.bool, device=device).scatter(1, order[:, :count], True)


def corrupt(
    patch_embeds: torch.Tensor,
    chosen: torch.Tensor,
    mask_token: torch.Tensor,
    mask_share: float,
    swap_share: float,
    seed: int | None = None,
) -> torch.Tensor:
    """Replaces chosen patches by the mask token or by another patch of the same image, or leaves them.

    Args:
        patch_embeds: `[batch, patches, dim]`.
        chosen: `[batch, patches]`, bool.
        mask_token: `[1, 1, dim]`.
        mask_share, swap_share: how likely the mask token and another patch are; the rest stays.
        seed: as in `choose_patches`.

    Returns:
        `[batch, patches, dim]`.
    """
    batch, patches, dim = patch_embeds.shape
    device = patch_embeds.device
    fate = _uniform(batch, patches, device, None if seed is None else seed + 1)
    draw = _uniform(batch, patches, device, None if seed is None else seed + 2)
    steps = 1 + (draw * (patches - 1)).long()  # to any patch but itself; an image of one patch has no other
    others = (torch.arange(patches, device=device) + steps) % patches
    swapped = patch_embeds.gather(1, others[..., None].expand(-1, -1, dim))
    masked = (chosen & (fate < mask_share))[..., None]
    swaps = (chosen & (fate >= mask_share) & (fate < mask_share + swap_share))[..., None]
    return torch.where(masked, mask_token.to(patch_embeds.dtype), torch.where(swaps, swapped, patch_embeds))


def mean_colours(
    pixel_values: torch.Tensor,
    grid: tuple[int, int],
    mean: float | list[float] | tuple[float, ...],
    std: float | list[float] | tuple[float, ...],
    bits: int,
) -> torch.Tensor:
    """The mean colour of each patch in a few bits a channel, as one class number.

    Args:
        pixel_values: `[batch, channels, h, w]`, normalised with `mean` and `std` from values between 0 and 1.
        grid: rows and columns of patches.
        bits: a channel.

    Returns:
        `[batch, rows * columns]`, long, below `2 ** (bits * channels)`; the first channel counts most.
    """
    channels, levels = pixel_values.shape[1], 2**bits
    patch = (pixel_values.shape[2] // grid[0], pixel_values.shape[3] // grid[1])
    # [batch, channels, patches]
    means = nn.functional.avg_pool2d(pixel_values.float(), patch, stride=patch).flatten(2)
    mean, std = (torch.tensor(value, device=means.device).expand(channels)[:, None] for value in (mean, std))
    # without the small step a patch of one colour may fall short of its level by rounding
    quantised = ((means * std + mean) * levels + 1e-5).long().clamp(0, levels - 1)
    places = levels ** torch.arange(channels - 1, -1, -1, device=means.device)
    return (quantised * places[:, None]).sum(dim=1)
