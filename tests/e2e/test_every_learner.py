"""The stock `Trainer` trains every head that has a loss: it resumes where it stopped, accumulates, and evaluates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.heads import LABELLED, LEARNERS, Head, assert_close, every, rows, state_of, tiny_batch, to_learn
from transformers import Trainer, TrainingArguments, set_seed


def rows_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A data set of what is in a batch; what is no tensor belongs to every row."""
    return [rows(batch, i, i + 1) for i in range(len(next(iter(batch.values()))))]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    first = items[0]
    return {
        name: torch.cat([item[name] for item in items]) if isinstance(value, torch.Tensor) else value
        for name, value in first.items()
    }


def build_trainer(
    head: Head,
    output: Path,
    data: list[dict[str, Any]] | None = None,
    data_collator: Callable = collate,
    config: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trainer:
    """The same model, data and order each time.

    Args:
        data, data_collator: rows, and what makes batches of them; random ones that the head learns from if left out.
        config: fields of the model's config.
        arguments: of `TrainingArguments`.
    """
    model = head.model(**(config or {}))
    set_seed(0)
    data = data or rows_of(to_learn(model, tiny_batch(model, images=16)))
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(str(output), **{**defaults, **arguments}),
        train_dataset=data,
        eval_dataset=data[:6],
        data_collator=data_collator,
    )


@every(LEARNERS)
def test_resuming_gives_the_state_of_an_uninterrupted_run(head, tmp_path):
    """Weights, and what moves beside them: momentum copies, queues, the statistics of batch norms."""
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = build_trainer(head, tmp_path / "whole", **options)
    before = state_of(whole.model)
    whole.train()
    resumed = build_trainer(head, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    ours, theirs = state_of(resumed.model), state_of(whole.model)
    assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    trained = [name for name, parameter in whole.model.named_parameters() if parameter.requires_grad]
    assert any(not torch.equal(before[name], theirs[name]) for name in trained)


@every(LEARNERS)
def test_evaluation_gives_a_loss_and_changes_nothing(head, tmp_path):
    trainer = build_trainer(head, tmp_path, per_device_eval_batch_size=3)
    before = state_of(trainer.model)
    found = trainer.predict(trainer.eval_dataset)
    assert found.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert_close(state_of(trainer.model), before, rtol=0, atol=0)
    # what is gathered as predictions has a row for each row of the data; losses and cached state are left out
    predictions = found.predictions if isinstance(found.predictions, tuple) else (found.predictions,)
    assert {len(part) for part in predictions} == {6}


@every(LABELLED)
def test_accumulated_batches_train_as_one(head, tmp_path):
    """The labels of unlike batches count alike."""
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    states = []
    for name, size, steps in (("whole", 4, 1), ("halves", 2, 2)):
        trainer = build_trainer(
            head, tmp_path / name, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options
        )
        for item in trainer.train_dataset[::2]:
            item["labels"] = item["labels"].index_fill(-1, torch.arange((item["labels"].shape[-1] + 1) // 2), -100)
        for module in trainer.model.modules():  # batch norm joins the rows of a batch
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train = lambda mode=True, module=module: module
        trainer.train()
        states.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    assert_close(states[1], states[0])
