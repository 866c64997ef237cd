"""A tiny run: twelve photos with captions, processors, and a recipe that is changed by each test."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny import WORDS, tiny_processor

from hfvlm.training.recipe import read_recipe


def write_recipe(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """`photos.jsonl` of twelve small photos, eight to train on, two captions each."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    rows = []
    for i in range(12):
        Image.fromarray(torch.randint(256, (24, 30, 3), dtype=torch.uint8).numpy()).save(folder / f"{i}.png")
        captions = [f"a {WORDS[i + 3]} {WORDS[i + 9]}", f"the {WORDS[i + 5]}"]
        rows.append({"image": f"{i}.png", "captions": captions, "split": "train" if i < 8 else "val"})
    (folder / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def processors(tmp_path_factory) -> dict[str, str]:
    """Folder of each architecture's processor."""
    folders = {}
    for name in ("albef", "blip", "clip"):
        folders[name] = str(tmp_path_factory.mktemp(name))
        tiny_processor(name).save_pretrained(folders[name])
    return folders


@pytest.fixture
def recipe(data, processors, tmp_path) -> dict[str, Any]:
    """Four steps of a fresh BLIP for retrieval, as YAML has it."""
    path = str(data / "photos.jsonl")
    return {
        "task": "retrieval",
        "model": {"architecture": "blip", "variant": "tiny"},
        "processor": processors["blip"],
        "data": {"train": {"path": path, "split": "train"}, "evaluation": {"path": path, "split": "val"}},
        "captions_per_image": 2,
        "augment": True,
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 2,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "output": str(tmp_path / "output"),
    }


@pytest.fixture
def read(tmp_path):
    """A recipe as the engine reads it."""
    return lambda recipe: read_recipe(write_recipe(tmp_path / "recipe.yaml", recipe))
