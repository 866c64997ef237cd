"""Image-text matching with hard negatives: does this text describe this image?

Align before Fuse, https://arxiv.org/abs/2107.07651: the more similar a wrong partner is, the likelier it is drawn.
"""

import torch
from torch import nn


def negative_weights(
    similarity: torch.Tensor, positives: torch.Tensor, ids: torch.Tensor | None = None, offset: float = 0.0
) -> torch.Tensor:
    """How likely each key is drawn as a row's negative; never one of the same image.

    Args:
        similarity: `[n, m]`, logits.
        positives: `[n]`, each row's own key.
        ids: `[m]`, of the keys' images; None: every key is another image.
        offset: added to each probability.

    Returns:
        `[n, m]`, not negative; a row of zeros where no key is of another image.
    """
    with torch.no_grad():
        weights = similarity.float().softmax(dim=-1) + offset
        if ids is None:
            same = nn.functional.one_hot(positives, weights.shape[1]).bool()
        else:
            same = ids[positives, None] == ids
        weights = weights.masked_fill(same, 0.0)
        lost = weights.sum(dim=-1, keepdim=True) == 0  # all of it fell on the row's own image: the others are alike
        return torch.where(lost, (~same).to(weights.dtype), weights)


def draw(weights: torch.Tensor) -> torch.Tensor:
    """A key for each row, by its weights: `[n, m]` -> `[n]`."""
    return torch.multinomial(weights, 1)[:, 0]


def choose_negatives(weights: torch.Tensor, training: bool) -> torch.Tensor | None:
    """Each row's negative, `[n]`: drawn in training; in evaluation, which shall repeat itself, the likeliest.

    Args:
        weights: `[n, m]` of `negative_weights`.

    Returns:
        None if there is none: all images are the same.
    """
    if not (weights.sum(dim=-1) > 0).all():
        return None
    return draw(weights) if training else weights.argmax(dim=-1)


def matching_labels(pairs: int, device: torch.device) -> torch.Tensor:
    """1 for `pairs` that match, then 0 for twice as many that do not: `[3 * pairs]`."""
    return torch.cat([torch.ones(pairs, dtype=torch.long), torch.zeros(2 * pairs, dtype=torch.long)]).to(device)


def matching_loss(logits: torch.Tensor, share: float) -> torch.Tensor:
    """Cross entropy of `[3 * pairs, 2]` logits, in the order of `matching_labels`.

    Args:
        share: what the sum is multiplied by; `1 / len(logits)` makes it a mean.
    """
    labels = matching_labels(len(logits) // 3, logits.device)
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum") * share
