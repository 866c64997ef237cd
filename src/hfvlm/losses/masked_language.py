"""Masked language modelling: some tokens are hidden, and predicted from the rest.

BERT, https://arxiv.org/abs/1810.04805; with a teacher's distribution as a second target, Align before Fuse,
https://arxiv.org/abs/2107.07651.
"""

from collections.abc import Iterable

import torch
from torch import nn

from hfvlm.losses.momentum_contrast import soft_cross_entropy


def mask_tokens(
    input_ids: torch.Tensor,
    *,
    probability: float,
    mask_token_id: int,
    vocab_size: int,
    spared: Iterable[int],
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hides tokens: of those chosen 80 % become [MASK], 10 % another word, 10 % stay.

    Args:
        input_ids: `[batch, length]`.
        probability: that a token is chosen.
        vocab_size: words that the other word is drawn from.
        spared: ids that are never chosen (padding, the start token).
        generator: for draws that repeat themselves.

    Returns:
        The ids with tokens hidden, and `[batch, length]` labels, -100 where nothing is to be predicted.
    """

    def flip(share: float) -> torch.Tensor:
        return torch.bernoulli(torch.full(input_ids.shape, share), generator=generator).bool().to(input_ids.device)

    chosen = flip(probability)
    for token in spared:
        chosen &= input_ids != token
    hidden = flip(0.8) & chosen
    other = flip(0.5) & chosen & ~hidden
    words = torch.randint(vocab_size, input_ids.shape, dtype=torch.long, generator=generator).to(input_ids.device)
    labels = input_ids.masked_fill(~chosen, -100)
    return torch.where(other, words, input_ids.masked_fill(hidden, mask_token_id)), labels


def masked_language_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0,
    count: int | None = None,
) -> torch.Tensor:
    """The mean over the hidden tokens; 0 with a gradient path if there is none.

    Args:
        logits: `[tokens, vocab_size]`, of the hidden tokens alone.
        labels: `[tokens]`.
        teacher_logits: as `logits`.
        alpha: how much of the target is the teacher's distribution.
        count: what the sum is divided by, if not the number of tokens.
    """
    losses = nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    if teacher_logits is not None and alpha:
        losses = (1 - alpha) * losses + alpha * soft_cross_entropy(logits, teacher_logits)
    return losses.sum() / max(len(labels) if count is None else count, 1)
