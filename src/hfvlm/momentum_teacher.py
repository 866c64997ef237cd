"""A head that learns with a momentum teacher: which parts have a copy, when the copies move, and how much they say."""

import torch
from torch import nn
from transformers import initialization as init

from hfvlm.losses.momentum import MomentumUpdater, as_kept, momentum_copy, start_teacher
from hfvlm.losses.momentum_contrast import check_alpha, ramp


class MomentumTeacherMixin:
    """For a `VlmPreTrainedModel` whose config has `momentum`, `alpha` and `alpha_steps`.

    Copies are named `teacher_<part>`, are saved with the model, and move once for every change of the student's
    weights, in training alone.
    """

    #: parts that have a copy
    taught_parts: tuple[str, ...] = ()

    def _build_teacher(self, *parts: str, **ready: nn.Module) -> None:
        """Copies the named parts; `ready` ones are copied in a part's place where the teacher needs less of it."""
        self.taught_parts = parts if self.config.momentum is not None else ()
        for name in self.taught_parts:
            setattr(self, f"teacher_{name}", momentum_copy(ready.get(name, getattr(self, name))))
        if self.taught_parts and self.config.alpha_steps:
            self.register_buffer("teacher_step", torch.zeros((), dtype=torch.long))
        self._updater = MomentumUpdater()

    def _teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(getattr(self, name), getattr(self, f"teacher_{name}")) for name in self.taught_parts]

    def _start_teacher(self) -> None:
        """Gives the copies and their ramp a start; to be called in `_init_weights`, once the student has its own."""
        for student, teacher in self._teacher_pairs():
            start_teacher(student, teacher)
        if hasattr(self, "teacher_step"):
            init.zeros_(self.teacher_step)

    def never_trained(self) -> list[nn.Module]:
        """The copies."""
        return [*super().never_trained(), *(teacher for _, teacher in self._teacher_pairs())]

    def train(self, mode: bool = True):
        super().train(mode)
        for _, teacher in self._teacher_pairs():
            teacher.train(mode)  # its dropout and batch norm work as the student's do, though nothing of it trains
        return self

    def _choose_alpha(self, alpha: float | None) -> float:
        """The teacher's say in this step: what the caller asks for, or in training the config's, on its ramp.

        Raises:
            ValueError: out of range, or asked for without a teacher.
        """
        if alpha is not None:
            check_alpha(alpha)
            if alpha and not self.taught_parts:
                raise ValueError(f"alpha is {alpha}, but config.momentum is None: there is no teacher to listen to")
            return alpha
        if not self.taught_parts or not self.training:
            return 0.0
        steps = self.config.alpha_steps
        return ramp(self.config.alpha, int(self.teacher_step) if steps else 0, steps)

    def _move_teacher(self) -> None:
        """One step towards the student, if its weights changed since the last."""
        if not self.training:
            return
        with as_kept(self):
            moved = self._updater(self._teacher_pairs(), self.config.momentum)
        if moved and self.config.alpha_steps:
            self.teacher_step += 1
