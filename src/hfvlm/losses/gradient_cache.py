"""Gradient caching: a batch of any size in the memory of a micro-batch.

Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, https://arxiv.org/abs/2101.06983. Each
micro-batch is encoded keeping its features alone, the loss sees the features of all, and the backward pass encodes
each micro-batch again to carry on from its features' gradients: activation checkpointing around the encoder.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norm leaves its running statistics as they are: it moves copies of them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: value.clone() for name, value in norm._buffers.items() if value is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            norm._buffers.update(buffers)


def in_micro_batches(
    encode: Callable[..., torch.Tensor],
    size: int,
    *tensors: torch.Tensor | None,
    module: nn.Module | None = None,
) -> torch.Tensor:
    """Encodes a batch some rows at a time; forward and backward pass hold the activations of so many.

    Gradients are those of the whole batch at once, also with dropout, whose draws are repeated. Batch norm takes its
    statistics of each micro-batch.

    Args:
        encode: takes the rows of `tensors`, returns `[rows, ...]`; it is called twice with each micro-batch.
        size: rows of a micro-batch.
        tensors: `[n, ...]` each, or None, which `encode` gets as it is.
        module: what `encode` runs; its batch norms count each micro-batch once.

    Returns:
        `[n, ...]`, the features of all rows.

    Raises:
        ValueError: a size below 1, no tensor, or tensors of different numbers of rows.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 row a micro-batch, got {size}")
    counts = {len(tensor) for tensor in tensors if tensor is not None}
    if len(counts) != 1:
        raise ValueError(f"tensors must have the same number of rows, got {sorted(counts) or 'none'}")
    rows = counts.pop()
    if rows <= size:
        return encode(*tensors)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), nullcontext() if module is None else _statistics_kept(module)

    features = []
    for start in range(0, rows, size):
        part = [None if tensor is None else tensor[start : start + size] for tensor in tensors]
        if torch.is_grad_enabled():
            features.append(checkpoint(encode, *part, use_reentrant=False, context_fn=contexts))
        else:
            features.append(encode(*part))
    return torch.cat(features)
