"""Contrastive training with the stock `Trainer`: two processes, micro-batches and chunks equal one big batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e2e.contrast_run import BATCH, build_trainer, run


HALF = {"per_device_train_batch_size": BATCH // 2, "ddp_backend": "gloo"}
SIGMOID = {"objective": "sigmoid", "logit_bias_init_value": -2.0}
#: what trains in two processes, and must be what one process does with the joined batch
OPTIONS = {
    "plain": {},
    "local loss": {"local_loss": True},
    "photos with several texts": {"image_ids": True, "local_loss": True},
    "label smoothing": {"label_smoothing": 0.1},
    "micro-batches and chunks": {"micro_batch_size": 2, "loss_chunk_size": 3},
    "sigmoid": SIGMOID,
    "sigmoid in chunks": {**SIGMOID, "image_ids": True, "loss_chunk_size": 3, "micro_batch_size": 3},
}


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-4)  # as logged: rounded
    assert ours["moved"].keys() == theirs["moved"].keys()
    for name, moved in theirs["moved"].items():
        torch.testing.assert_close(ours["moved"][name], moved, atol=1e-5, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a training in one process, after its first step."""
    folder = tmp_path_factory.mktemp("one")
    build_trainer(folder, {}, {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.1}).train()
    return folder / "checkpoint-1"


@pytest.fixture(scope="module")
def in_two(checkpoint, tmp_path_factory) -> dict[str, dict]:
    """Every case, run by two processes with half the batch each."""
    cases = {name: {"config": config, "arguments": HALF} for name, config in OPTIONS.items()}
    on = {**HALF, "max_steps": 2, "learning_rate": 0.1}
    cases["resumed"] = {"config": {}, "arguments": on, "resume": str(checkpoint)}
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("contrast_run.py"))
    finished = subprocess.run(
        [*command, script, str(folder), json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_equal_one_with_the_joined_batch(name, in_two, tmp_path):
    config = {k: v for k, v in OPTIONS[name].items() if k not in ("micro_batch_size", "loss_chunk_size")}
    one = run(tmp_path, {"config": config})
    assert_same(in_two[name], one)
    largest = max(moved.abs().max().item() for moved in one["moved"].values())
    assert largest > 1e-2  # there was something to compare


def test_a_training_goes_on_with_another_number_of_processes(checkpoint, in_two, tmp_path):
    on = {"max_steps": 2, "learning_rate": 0.1}
    assert_same(in_two["resumed"], run(tmp_path, {"config": {}, "arguments": on, "resume": str(checkpoint)}))


@pytest.mark.parametrize(
    "config, arguments",
    [
        ({"micro_batch_size": 3}, {}),
        ({"micro_batch_size": 1, "loss_chunk_size": 1}, {}),
        ({"loss_chunk_size": 5}, {}),
        ({"micro_batch_size": 100, "loss_chunk_size": 100}, {}),
        ({"micro_batch_size": 3}, {"gradient_checkpointing": True}),
        ({}, {"gradient_checkpointing": True}),
    ],
)
def test_micro_batches_and_chunks_are_a_matter_of_memory(config, arguments, tmp_path):
    case = {"config": {"image_ids": True, "label_smoothing": 0.1}}
    split = {"config": {**case["config"], **config}, "arguments": arguments}
    assert_same(run(tmp_path, split), run(tmp_path, case))


def test_the_loss_is_evaluated_where_the_batch_asks_for_it(tmp_path):
    trainer = build_trainer(tmp_path, {}, {"per_device_eval_batch_size": 3, "eval_strategy": "no"})
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {**collate(rows), "return_loss": True}
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    with torch.no_grad():
        losses = [model(**collate(trainer.eval_dataset[i : i + 3]), return_loss=True).loss.item() for i in (0, 3)]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    predictions = trainer.predict(trainer.eval_dataset[:3]).predictions
    assert [part.shape for part in predictions] == [(3, 3), (3, 3), (3, 32), (3, 32)]
