"""How likely a model finds whole answers."""

from collections.abc import Callable

import torch
from torch import nn

from hfvlm.losses.momentum_contrast import soft_cross_entropy


#: learned tokens whose scores over the vocabulary are made at once when answers are ranked
TOKENS_AT_ONCE = 256


def _sums(losses: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Losses of the learned tokens, in order, to those of the rows `[answers]`."""
    rows = torch.arange(len(learned), device=learned.device)[:, None].expand_as(learned)[learned]
    return losses.new_zeros(len(learned)).index_add(0, rows, losses)


def answer_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    teacher_logits: torch.Tensor | None = None,
    alpha: float = 0.0,
) -> torch.Tensor:
    """Each answer's loss: the sum of its tokens', each under the logits of the position before it.

    Args:
        logits: `[answers, length, vocab]`.
        labels: `[answers, length]`, aligned with the inputs; -100 where there is nothing to learn.
        label_smoothing: share of the target spread evenly over the vocabulary.
        teacher_logits: of the shape of `logits`: a distribution to learn beside the labels.
        alpha: its share.

    Returns:
        `[answers]`, in fp32; 0 with a gradient path where no label is left.
    """
    targets = labels[:, 1:]
    learned = targets != -100
    scores = logits[:, :-1][learned].float()
    losses = nn.functional.cross_entropy(scores, targets[learned], label_smoothing=label_smoothing, reduction="none")
    if teacher_logits is not None and alpha:
        losses = (1 - alpha) * losses + alpha * soft_cross_entropy(scores, teacher_logits[:, :-1][learned])
    return _sums(losses, learned)


def answer_log_likelihoods(
    states: torch.Tensor, targets: torch.Tensor, head: Callable, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Minus the sum of each answer's losses, of `head(states)`, which is made of some tokens at a time, and of learned
    ones alone: `[answers]`.

    Args:
        states: `[answers, length, width]`.
        targets: `[answers, length]`, what each of these predicts; -100: nothing.
        head: `[tokens, width]` -> `[tokens, vocab]`.
    """
    learned = targets != -100
    parts = zip(states[learned].split(TOKENS_AT_ONCE), targets[learned].split(TOKENS_AT_ONCE), strict=True)
    losses = [
        nn.functional.cross_entropy(head(rows).float(), wanted, label_smoothing=label_smoothing, reduction="none")
        for rows, wanted in parts
    ]
    return -_sums(torch.cat(losses), learned)
