"""A command line without a process: `run("caption", path)` -> exit code, stdout, stderr."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

from hfvlm.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HFVLM_DEBUG", raising=False)

    def call(*arguments) -> Result:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(exit.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Folder of a tiny captioner."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("hfvlm_blip", "AutoModelForImageTextToText").save_pretrained(folder)
    tiny_processor("hfvlm_blip").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path):
    """A folder with three images, one of them in a folder of its own, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.JPG", "more/c.webp", ".hidden/d.png", ".e.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder
