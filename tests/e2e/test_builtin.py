"""The built-in captioner, as a user meets it: photos in, sensible English out, offline."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import hfvlm
from hfvlm.builtin import builtin_model


PHOTOS = Path(__file__).parents[2] / "examples" / "images"

#: photo -> a caption that sees what it shows has one of these words
SHOWN = {
    "dog.jpg": r"\b(dogs?|puppy)\b",
    "duck.jpg": r"\b(birds?|ducks?)\b",
    "camera.jpg": r"\b(man|person)\b.*\bcamera\b",
}


def test_is_small_and_complete():
    files = [path for path in builtin_model("image-to-text").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    model = transformers.AutoModelForImageTextToText.from_pretrained(builtin_model("image-to-text"))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12e6


@pytest.mark.parametrize("photo", SHOWN)
def test_pipeline_says_what_is_shown(photo):
    [row] = hfvlm.pipeline("image-to-text", device="cpu")(PHOTOS / photo)
    assert re.search(SHOWN[photo], row["generated_text"]), row
    assert 4 <= len(row["generated_text"].split()) <= 30


def test_command_line_says_what_is_shown():
    command = [sys.executable, "-c", "from hfvlm.cli import main; main()", "caption", str(PHOTOS), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    captions = {Path(row["image"]).name: row["caption"] for row in map(json.loads, result.stdout.splitlines())}
    assert set(captions) >= set(SHOWN)
    for photo, words in SHOWN.items():
        assert re.search(words, captions[photo]), captions
