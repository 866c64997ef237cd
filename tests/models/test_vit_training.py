"""The stock `Trainer` pretrains and finetunes: the example, on photos of two colours."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from hfvlm import VitConfig, VitForImageClassification


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "train_vit.py"
    spec = importlib.util.spec_from_file_location("train_vit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten noisy photos each of a red and of a blue thing."""
    random = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            image = random.integers(0, 90, (36, 40, 3), dtype=np.uint8)
            image[..., channel] += 160
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_the_example_pretrains_and_then_classifies(example, photos, tmp_path, capsys):
    sizes = ["--variant", "tiny", "--image-size", "32", "--batch-size", "8", "--learning-rate", "3e-3"]
    stages = ["--pretraining-epochs", "2", "--epochs", "8"]
    example.main(["--images", str(photos), "--output", str(tmp_path / "out"), *sizes, *stages])
    said = {
        line.split(": ", 1)[0]: line.split(": ", 1)[1]
        for line in capsys.readouterr().out.splitlines()
        if ": {" in line
    }
    assert json.loads(said["masked patches"])["held_out_loss"] < 6.2  # of 512 classes: 6.24 by guessing
    assert json.loads(said["classes"]) == {"accuracy": 1.0, "always_the_commonest_class": 0.5}
    model = VitForImageClassification.from_pretrained(tmp_path / "out" / "classes")
    assert model.config.label2id == {"blue": 0, "red": 1}
    with pytest.raises(SystemExit, match="two sub-folders or more are needed"):
        example.main(["--images", str(photos / "red"), "--output", str(tmp_path / "none")])


def test_accumulated_batches_train_as_one(tmp_path):
    """Gradient accumulation: `Trainer` hands over the number of labels, and the loss is divided by it once."""
    torch.manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 2} for i in range(8)]
    start = VitForImageClassification(VitConfig.variant("tiny")).state_dict()
    trained = []
    for batch, steps in ((8, 1), (2, 4)):
        model = VitForImageClassification(VitConfig.variant("tiny"))
        model.load_state_dict(start)
        settings = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd",
            learning_rate=0.1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
        )
        Trainer(model, settings, train_dataset=rows).train()
        trained.append(model.state_dict())
    assert any(not torch.equal(trained[0][name], start[name]) for name in start)
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
