"""`hfvlm train`: a recipe on the command line."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny import tiny_processor


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of one step, and what it names."""
    rows = []
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "captions": ["a red dog", "the ball"]})
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_processor("blip").save_pretrained(tmp_path / "processor")
    said = {
        "task": "captioning",
        "model": {"architecture": "blip", "variant": "tiny"},
        "processor": str(tmp_path / "processor"),
        "data": {"train": str(tmp_path / "photos.jsonl"), "evaluation": str(tmp_path / "photos.jsonl")},
        "samples": 1,
        "training": {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "use_cpu": True},
        "output": str(tmp_path / "output"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(said))
    return tmp_path / "recipe.yaml"


def test_it_trains_and_resumes(run, recipe, tmp_path):
    result = run("train", recipe, "--set", "training.learning_rate=1e-3", "--set", "training.disable_tqdm=true")
    assert result.code == 0, result.err
    assert "learning rate 0.001" in result.out and "'loss_lm'" in result.out and "step 2: 0.png: " in result.out
    assert result.out.splitlines()[-1] == f"saved {tmp_path / 'output' / 'model'}"
    assert run("caption", tmp_path / "0.png", "--model", tmp_path / "output" / "model").code == 0
    again = run("train", recipe)
    assert again.code == 1 and "pass --resume" in again.err
    more = ("--set", "training.max_steps=3", "--set", "training.learning_rate=1e-3", "--resume")
    assert "goes on from checkpoint-2" in run("train", recipe, *more, "--dry-run").out
    assert run("train", recipe, *more).code == 0 and (tmp_path / "output" / "checkpoint-3").is_dir()


def test_a_dry_run_says_what_would_be_done(run, recipe, tmp_path):
    output = tmp_path / "else\"where'"
    result = run("train", recipe, "--dry-run", "--output", output)
    assert result.code == 0 and not output.exists()
    lines = result.out.splitlines()
    assert lines[0].startswith("task        captioning: BlipForConditionalGeneration, ")
    assert lines[-1] == f"output      {output}"


def test_every_mistake_is_a_line(run, recipe):
    result = run("train", recipe, "--set", "tsak=x", "--set", "alpha=2", "--set", "training.seed=true")
    assert result.code == 1 and result.out == ""
    assert result.err.splitlines() == [
        "error: tsak: is no key here; did you mean 'task'?",
        "error: alpha: must be between 0 and 1, got 2",
    ]
    result = run("train", recipe, "--set", "training.seed=true")
    assert result.err.splitlines() == ["error: training.seed: must be a whole number, got True (true or false)"]


def test_wrong_calls(run, recipe, tmp_path):
    for change in ("training.seed", "=3"):
        result = run("train", recipe, "--set", change)
        assert result.code == 2 and f"'{change}' must be KEY=VALUE" in result.err
    result = run("train", tmp_path / "none.yaml")
    assert result.code == 1 and "none.yaml" in result.err
    result = run("train", recipe, "--set", "alpha=[")
    assert result.code == 1 and "is no YAML" in result.err
