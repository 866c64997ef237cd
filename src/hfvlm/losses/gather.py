"""Rows of all processes, joined in the order of their ranks; gradients flow back to where a row came from."""

from collections.abc import Callable

import torch
from torch import distributed, nn


def several_processes() -> bool:
    """Whether `torch.distributed` is set up with more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _collective(name: str, until_2_12: str) -> Callable:
    """A collective operation by its name, or by the one it had in older versions of torch."""
    return getattr(distributed, name, None) or getattr(distributed, until_2_12)


def _all_gather(joined: torch.Tensor, own: torch.Tensor) -> None:
    _collective("all_gather_single", "all_gather_into_tensor")(joined, own)


def _reduce_scatter(own: torch.Tensor, joined: torch.Tensor) -> None:
    _collective("reduce_scatter_single", "reduce_scatter_tensor")(own, joined)


def row_counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each process has, this one having `rows`; the communication runs on `device`."""
    if not several_processes():
        return [rows]
    counts = torch.empty(distributed.get_world_size(), dtype=torch.long, device=device)
    _all_gather(counts, torch.tensor([rows], device=device))
    return counts.tolist()


def shared_count(count: int, device: torch.device) -> float:
    """What a process divides its sum by, so that the mean over processes is the mean over all that they count."""
    counts = row_counts(count, device)
    return sum(counts) / len(counts)


def own_rows(counts: list[int]) -> slice:
    """Where this process's rows lie among the joined ones."""
    rank = distributed.get_rank() if several_processes() else 0
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """The tensor with zeros below, `rows` in all: collectives want as many of each process."""
    if len(tensor) == rows:
        return tensor.contiguous()
    padded = tensor.new_zeros(rows, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return padded


def _all_rows(tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
    most = max(counts)
    joined = tensor.new_empty(len(counts) * most, *tensor.shape[1:])
    _all_gather(joined, _padded(tensor, most))
    if min(counts) == most:
        return joined
    return torch.cat([part[:count] for part, count in zip(joined.split(most), counts)])


def gather_texts(
    values: torch.Tensor, mask: torch.Tensor, counts: list[int], with_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of every process, and their masks, padded on the right to the longest of all.

    Args:
        values: `[rows, length, ...]`, ids or states.
        mask: `[rows, length]`, 0 over padding.
        counts: of `row_counts`.
    """
    if not several_processes():
        return values, mask
    longest = max(row_counts(values.shape[1], values.device))
    lacking = longest - values.shape[1]
    values = nn.functional.pad(values, (*(0, 0) * (values.ndim - 2), 0, lacking))
    mask = nn.functional.pad(mask, (0, lacking))
    return gather(values, with_grad, counts), gather(mask, False, counts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
        ctx.counts = counts
        return _all_rows(tensor, counts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        most = max(ctx.counts)
        padded = torch.cat([_padded(part, most) for part in gradient.split(ctx.counts)])
        own = gradient.new_empty(most, *gradient.shape[1:])
        _reduce_scatter(own, padded)
        return own[: ctx.counts[distributed.get_rank()]], None


def gather(tensor: torch.Tensor, with_grad: bool = True, counts: list[int] | None = None) -> torch.Tensor:
    """The rows of every process, joined in the order of their ranks; a single process gets its own.

    In the backward pass each row's owner gets the sum of the gradients that all processes have for the row. A loss
    that every process computes of all rows is thus counted as often as there are processes; the mean that
    `DistributedDataParallel` takes of parameter gradients makes that the gradient of one process with all rows.

    Args:
        tensor: `[rows, ...]`; the number of rows may differ between processes, the other sizes may not.
        with_grad: off: the result is a constant.
        counts: of `row_counts`, where they are known already; else they are exchanged first.

    Returns:
        `[rows of all processes, ...]`.
    """
    tensor = tensor if with_grad else tensor.detach()
    if not several_processes():
        return tensor
    if counts is None:
        counts = row_counts(len(tensor), tensor.device)
    return _Gather.apply(tensor, counts)
