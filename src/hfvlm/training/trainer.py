"""The stock `Trainer`, which also logs the parts of a loss; and callbacks."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from hfvlm.training.rows import Rows
from hfvlm.training.tasks import Task, predictions


class _Means:
    """Sums of named numbers since the last time that they were asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, parts: dict[str, torch.Tensor], count: int = 1) -> None:
        for name, value in parts.items():
            value = value.detach().float().mean() * count
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + count

    def take(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The means over all processes, by name; it starts anew."""
        means = {}
        for name, value in self.sums.items():
            both = gather(torch.stack([value, torch.full_like(value, self.counts[name])])).reshape(-1, 2).sum(dim=0)
            means[name] = (both[0] / both[1]).item()
        self.sums, self.counts = {}, {}
        return means


class PartsTrainer(Trainer):
    """Logs `loss_*` of the model's outputs beside the loss: in training their means since the last log, in evaluation
    those over all rows, as `eval_loss_*`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._parts = {True: _Means(), False: _Means()}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        parts = {name: value for name, value in outputs.items() if name.startswith("loss_") and value is not None}
        count = 1 if model.training else len(next(iter(inputs.values())))
        if model.training and self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            # each is a share of the accumulated batch's mean, and with all devices' tokens of all devices'
            shares = self.current_gradient_accumulation_steps
            shares *= self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            parts = {name: value * shares for name, value in parts.items()}
        self._parts[model.training].add(parts, count)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # loaders draw a seed, and a run that is resumed at the end of an epoch skips its evaluation
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for training, key in ((True, "loss"), (False, "eval_loss")):
            if key in logs:
                prefix = key.removesuffix("loss")
                means = self._parts[training].take(self.accelerator.gather)
                logs.update({f"{prefix}{name}": value for name, value in means.items()})
        super().log(logs, *args, **kwargs)


class EpochOf(TrainerCallback):
    """Tells rows which epoch it is."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.epoch = int(state.epoch + 1e-6)  # a share of steps: the last may fall short of the whole


class ShowSamples(TrainerCallback):
    """Shows predictions for the first rows at each evaluation; all processes predict the same, the first one writes.

    Args:
        rows: evaluation rows.
        count: how many.
        write: takes a line.
    """

    def __init__(
        self, task: Task, processor: Any, rows: Rows, count: int, max_length: int | None, write: Callable[[str], Any]
    ):
        self.task, self.processor, self.max_length, self.write = task, processor, max_length, write
        self.rows, self.count = rows, min(count, len(rows))

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        # every process predicts: where weights are sharded, a forward pass needs all; rows draw nothing here
        items = [self.rows[i] for i in range(self.count)]
        shown = predictions(self.task, model, self.processor, items, self.max_length)
        for i, (said, wanted) in enumerate(shown if state.is_world_process_zero else ()):
            self.write(f"step {state.global_step}: {self.rows.name(i)}: {said!r} (data: {wanted!r})")
