"""Text assignment: which of two images is a text about, the first, the second, or neither?

Align before Fuse, https://arxiv.org/abs/2107.07651, which prepares a model for two images so. The more similar another
image is to a text's own, the likelier it is drawn beside it or instead of it.
"""

import torch
from torch import nn

from hfvlm.losses.contrastive import full_precision
from hfvlm.losses.matching import draw, negative_weights
from hfvlm.losses.pairs import precise


#: what similarities are divided by, here a constant
TEMPERATURE = 0.07
#: how often a text's own image is not among its two
NEITHER = 1 / 3


def assignment_weights(image_embeds: torch.Tensor, image_ids: torch.Tensor | None = None) -> torch.Tensor:
    """How likely each image is drawn for a text of each: `[images, dim]` of length 1 -> `[images, images]`.

    Args:
        image_ids: `[images]`, equal where the same image is shown: it is not drawn for itself.
    """
    own = torch.arange(len(image_embeds), device=image_embeds.device)
    with torch.no_grad(), full_precision(image_embeds.device):
        embeds = precise(image_embeds)
        return negative_weights(embeds @ embeds.t() / TEMPERATURE, own, image_ids)


def draw_pairs(weights: torch.Tensor, own: torch.Tensor, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images for each text: its own and another, in either order, or two others.

    In evaluation, which shall repeat itself, the others are the likeliest and the three cases take turns.

    Args:
        weights: `[images, images]` of `assignment_weights`.
        own: `[texts]`, the image that each is about.

    Returns:
        `[texts, 2]` images, and `[texts]` classes: 0, it is about the first; 1, about the second; 2, about neither;
        -100 where there is no other image. Where there is only one other, it is drawn twice for "neither".
    """
    weights = weights[own]
    none = weights.sum(dim=-1) == 0
    weights = weights.masked_fill(none[:, None], 1.0)
    first = _choose(weights, training)
    rest = weights.scatter(1, first[:, None], 0.0)
    second = _choose(torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, weights), training)
    if training:
        kind, slot = torch.rand(2, len(own), device=own.device)
        labels = torch.where(kind > NEITHER, (slot <= 0.5).long(), 2)
    else:
        labels = torch.arange(len(own), device=own.device) % 3
    pairs = [
        torch.where(labels == 0, own, first),
        torch.where(labels == 1, own, torch.where(labels == 0, first, second)),
    ]
    return torch.stack(pairs, dim=1), labels.masked_fill(none, -100)


def _choose(weights: torch.Tensor, training: bool) -> torch.Tensor:
    return draw(weights) if training else weights.argmax(dim=-1)


def assigned(pairs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The classes of given pairs, `[texts, 2]` -> `[texts]`: the slot that a text's own image is in, or 2.

    Args:
        pairs: the two images of each text, by number or by id.
        own: `[texts]`, its own, likewise.
    """
    return torch.where(pairs[:, 0] == own, 0, torch.where(pairs[:, 1] == own, 1, 2))


def assignment_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of `[texts, 3]` logits over the texts that have a class; 0 if none has."""
    total = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
