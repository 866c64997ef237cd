"""Language modelling: predict each next token."""

import torch
from torch import nn


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of each label under the logits of the position before it.

    Args:
        logits: `[batch, length, vocab]`.
        labels: `[batch, length]`, aligned with the inputs; -100 where there is nothing to learn.
        label_smoothing: share of the target spread evenly over the vocabulary.
        num_items_in_batch: labels in the whole accumulated batch, as `Trainer` counts them; the loss is then their
            sum divided by it, else the mean over this batch's labels.

    Returns:
        A scalar, in fp32; 0 with a gradient path if no label is left.
    """
    targets = labels[:, 1:].reshape(-1)
    learned = targets != -100
    scores = logits[:, :-1].reshape(-1, logits.shape[-1])[learned].float()
    total = nn.functional.cross_entropy(scores, targets[learned], label_smoothing=label_smoothing, reduction="sum")
    count = learned.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count


def inputs_of_labels(labels: torch.LongTensor, start: int, pad: int | None, name: str) -> torch.LongTensor:
    """The decoder's inputs `[batch, length]` that labels alone tell: the start token, whatever column 0 holds, then
    the labels.

    Args:
        name: the argument that would tell a masked prompt, for the error.

    Raises:
        ValueError: a token follows a -100, so that the text cannot be recovered.
    """
    if not torch.compiler.is_compiling():
        learned = labels[:, 1:] != -100
        if (learned[:, 1:] & ~learned[:, :-1]).any():
            raise ValueError(
                f"labels mask tokens (-100) before others: pass {name} too, the masked prompt cannot be recovered "
                "from labels"
            )
    inputs = labels.masked_fill(labels == -100, pad or 0)
    inputs[:, 0] = start
    return inputs
