"""The stock `Trainer` trains a captioner: it learns, resumes exactly, accumulates, and splits over processes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e2e.training_run import build_trainer, weights
from PIL import Image

from hfvlm import BlipForConditionalGeneration


COLOURS = ("red", "blue", "black", "white", "brown", "green")


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    """Twelve images of one colour each; captions of unlike lengths, two an image."""
    folder = tmp_path_factory.mktemp("photos")
    draw = random.Random(0)
    rows = []
    for i in range(12):
        colour = COLOURS[i % len(COLOURS)]
        Image.new("RGB", (draw.randint(20, 60), draw.randint(20, 60)), colour).save(folder / f"{i}.png")
        longer = " ".join(["big"] * draw.randint(1, 9))
        rows.append({"image": f"{i}.png", "captions": [f"a {colour} picture", f"the {longer} {colour} field"]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "captions.jsonl"


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_loss_falls_and_its_parts_are_what_is_logged(captions, tmp_path):
    trainer = build_trainer(
        captions, tmp_path, max_steps=60, optim="adamw_torch", learning_rate=1e-2, max_grad_norm=1.0
    )
    parts = []
    trainer.model.register_forward_hook(lambda module, args, outputs: parts.append(outputs.loss_lm.item()))
    before = trainer.evaluate()["eval_loss"]
    parts.clear()
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 60
    assert parts == pytest.approx(logged, rel=1e-3)
    assert logged[-1] < logged[0] / 2
    assert trainer.evaluate()["eval_loss"] < before / 2


def test_a_trained_captioner_names_the_colour(captions, tmp_path):
    trainer = build_trainer(
        captions, tmp_path, max_steps=120, optim="adamw_torch", learning_rate=1e-2, per_device_train_batch_size=6
    )
    trainer.train()
    processor, dataset = trainer.data_collator.processor, trainer.train_dataset
    batch = processor(images=[dataset[i]["image"] for i in range(6)], text="a")
    ids = trainer.model.eval().generate(**batch, max_new_tokens=6)
    assert processor.batch_decode(ids) == [f"a {colour} picture" for colour in COLOURS]


def test_metrics_can_be_computed_of_predictions(captions, tmp_path):
    trainer = build_trainer(captions, tmp_path, per_device_eval_batch_size=2)
    trainer.eval_dataset.captions_per_image = 1
    seen = {}

    def accuracy(prediction) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction.predictions.shape, prediction.label_ids.shape
        learned = prediction.label_ids[:, 1:] != -100
        right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": right[learned].mean()}

    trainer.compute_metrics = accuracy
    assert 0.0 <= trainer.evaluate()["eval_accuracy"] <= 1.0
    assert seen["logits"] == (*seen["labels"], 64) and seen["labels"][0] == 3


def test_resuming_gives_the_weights_of_an_uninterrupted_run(captions, tmp_path):
    """To the bit: optimizer, schedule, order of the data and dropout all go on where they stopped."""
    options = {"max_steps": 8, "dropout": 0.2, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 5}
    whole = build_trainer(captions, tmp_path / "whole", **options)
    whole.train()
    resumed = build_trainer(captions, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.state.global_step == 8
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    halfway = BlipForConditionalGeneration.from_pretrained(tmp_path / "whole" / "checkpoint-5")
    assert not torch.equal(halfway.lm_head.decoder.weight, whole.model.lm_head.decoder.weight)


def test_accumulating_two_batches_of_two_equals_a_batch_of_four(captions, tmp_path):
    whole = build_trainer(captions, tmp_path, per_device_train_batch_size=4)
    halves = build_trainer(captions, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    start = weights(whole)
    assert_close(start, weights(halves))
    whole.train()
    halves.train()
    assert not torch.allclose(start["lm_head.dense.weight"], weights(whole)["lm_head.dense.weight"], atol=1e-3)
    assert_close(weights(halves), weights(whole))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, halves)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_gradient_checkpointing_is_a_matter_of_an_argument(captions, tmp_path):
    plain = build_trainer(captions, tmp_path)
    checkpointed = build_trainer(captions, tmp_path, gradient_checkpointing=True)
    plain.train()
    checkpointed.train()
    assert_close(weights(checkpointed), weights(plain))


def test_two_processes_equal_one_with_the_joined_batch(captions, tmp_path):
    options = {"max_steps": 3}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("training_run.py"))
    arguments = [str(captions), str(tmp_path / "two"), json.dumps({**options, "ddp_backend": "gloo"})]
    run = subprocess.run(
        [*command, script, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    one = build_trainer(captions, tmp_path / "one", per_device_train_batch_size=4, **options)
    one.train()
    two = BlipForConditionalGeneration.from_pretrained(tmp_path / "two")
    assert_close({name: p.detach() for name, p in two.named_parameters()}, weights(one))
