"""A momentum teacher: a copy of a module whose weights follow the trained ones slowly."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import initialization as init


Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(module: Module) -> Module:
    """A copy of a module whose parameters need no gradient.

    It stays in the mode that the module is in, and as a part of a model it follows the model's `train()` and `eval()`:
    in training its batch norms and dropout work as the student's do.
    """
    return deepcopy(module).requires_grad_(False)


@torch.no_grad()
def start_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Gives a teacher the student's weights, but for those that were loaded."""
    source = dict(student.state_dict())
    for name, copy in teacher.state_dict(keep_vars=True).items():
        if not source[name].is_meta:  # a tied weight that is filled in once all are loaded
            init.copy_(copy, source[name])


@contextmanager
def as_kept(model: nn.Module) -> Iterator[None]:
    """Within it the parameters of a model that is in its forward pass are those that are kept, and may be changed.

    Under FSDP 2 they are this process's parts; what the pass has gathered of them is thrown away after it, with all
    that was written into it.
    """
    sharded = isinstance(model, FSDPModule)
    if sharded:
        model.set_reshard_after_forward(True, recurse=False)  # a root keeps what it gathered, whatever it is told
        model.reshard()
    try:
        yield
    finally:
        if sharded:
            model.unshard()


def own_part(weights: torch.Tensor) -> torch.Tensor:
    """What this process has of a parameter, to be changed in place."""
    return weights.to_local() if isinstance(weights, DTensor) else weights.detach()


class MomentumUpdater:
    """Moves teachers towards their students, once for every change of the students' weights.

    A change is told by the weights themselves: by the sum of each parameter. So several forward passes between two
    optimiser steps (gradient accumulation, two views, checkpointing) move the teachers once, whichever optimiser steps
    (fused kernels change parameters without counting it in their version). The first call moves them, also after
    training is resumed; there is no state to save.
    """

    def __init__(self) -> None:
        self._seen: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, pairs: Iterable[tuple[nn.Module, nn.Module]], momentum: float) -> bool:
        """`teacher = momentum * teacher + (1 - momentum) * student`, for parameters; buffers are left alone.

        Args:
            pairs: (student, teacher) modules; the student has the teacher's parameters, and maybe more.
            momentum: the share of itself that the teacher keeps, 0 to 1.

        Returns:
            Whether the teachers moved.

        Raises:
            ValueError: a momentum out of range, a student that lacks its teacher's parameters, or teachers in half
                precision whose steps would be rounded away.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum}")
        students, teachers = [], []
        for student, teacher in pairs:
            ours, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
            differ = sorted(theirs.keys() - ours.keys()) or [n for n in theirs if ours[n].shape != theirs[n].shape]
            if differ:
                raise ValueError(f"student and teacher must have the same parameters, they differ in {differ[0]}")
            moved = {id(weights) for weights in teachers}  # tied weights move once
            own = [name for name in theirs if id(theirs[name]) not in moved]
            students += (ours[name] for name in own)
            teachers += (theirs[name] for name in own)
        for dtype in {weights.dtype for weights in teachers if weights.dtype.itemsize < 4}:
            # a weight moves only if the student's differs by more than eps / (2 * step) of it: 1/16 at 8 * eps
            if 0.0 < 1.0 - momentum < 8 * torch.finfo(dtype).eps:
                raise ValueError(
                    f"the teachers are in {dtype}, whose rounding swallows their steps at a momentum of {momentum}: "
                    "keep the model in torch.float32 and train it under autocast (Trainer: bf16=True or fp16=True)"
                )
        students, teachers = ([own_part(weights) for weights in side] for side in (students, teachers))
        now = torch.stack([weights.sum(dtype=torch.float32) for weights in students])
        if self._seen is not None and torch.equal(self._seen.to(now.device), now):
            return False
        self._seen = now
        torch._foreach_mul_(teachers, momentum)
        torch._foreach_add_(teachers, students, alpha=1.0 - momentum)
        return True
