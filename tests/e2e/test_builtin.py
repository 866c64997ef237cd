"""The built-in model, as a user meets it: photos in, sensible English out; a description in, the photo out."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from PIL import Image

import hfvlm
from hfvlm.builtin import BUILTIN, builtin_model


PHOTOS = Path(__file__).parents[2] / "examples" / "images"

#: photo -> a caption that sees what it shows has one of these words
SHOWN = {
    "dog.jpg": r"\b(dogs?|puppy)\b",
    "duck.jpg": r"\b(birds?|ducks?)\b",
    "camera.jpg": r"\b(man|woman|person)\b.*\bcamera\b",
}


def test_is_small_and_complete():
    folders = {builtin_model(task) for task in BUILTIN}
    assert len(folders) == 1, "one file does all"
    files = [path for path in folders.pop().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    model = transformers.AutoModelForPreTraining.from_pretrained(builtin_model("image-to-text"))
    assert isinstance(model, hfvlm.BlipForPreTraining)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 15e6


@pytest.mark.parametrize("photo", SHOWN)
def test_pipeline_says_what_is_shown(photo):
    [row] = hfvlm.pipeline("image-to-text", device="cpu")(PHOTOS / photo)
    assert re.search(SHOWN[photo], row["generated_text"]), row
    assert 4 <= len(row["generated_text"].split()) <= 30


def test_command_line_says_what_is_shown():
    rows = map(json.loads, command("caption", str(PHOTOS), "--json"))
    captions = {Path(row["image"]).name: row["caption"] for row in rows}
    assert set(captions) >= set(SHOWN)
    for photo, words in SHOWN.items():
        assert re.search(words, captions[photo]), captions


def test_pipeline_finds_what_is_described():
    pipe = hfvlm.pipeline("image-text-retrieval", device="cpu").index(images=PHOTOS)
    wanted = {"a dog": "dog.jpg", "a bird swims in the water": "duck.jpg", "a man with a camera": "camera.jpg"}
    found = {query: Path(pipe(query, top_k=1)[0]["image"]).name for query in wanted}
    assert found == wanted
    judged = {query: Path(pipe(query, top_k=1, rerank=3)[0]["image"]).name for query in wanted}
    assert judged == wanted


def test_pipeline_judges_pairs():
    judge = hfvlm.pipeline("image-text-matching", device="cpu")
    texts = {"dog.jpg": "a dog", "duck.jpg": "a bird is in the water", "camera.jpg": "a man with a camera"}
    for photo, text in texts.items():
        rows = judge(PHOTOS / photo, text=list(texts.values()))
        assert max(rows, key=lambda row: row["score"])["text"] == text, rows


def test_command_line_searches_classifies_and_matches(tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(PHOTOS, folder)
    searched = command("search", "a dog", "--in", str(folder), "--json", "--sheet", str(tmp_path / "sheet.png"))
    assert Path(json.loads(searched[0])["image"]).name == "dog.jpg"
    assert Image.open(tmp_path / "sheet.png").size[0] > 300
    [classified] = command("classify", str(folder / "duck.jpg"), "--labels", "dog,duck,camera", "--json")
    scores = json.loads(classified)["scores"]
    assert max(scores, key=scores.get) == "duck"
    matched = command("match", str(folder / "dog.jpg"), "a man with a camera", "a dog", "--json")
    assert [json.loads(row)["text"] for row in matched] == ["a dog", "a man with a camera"]


def command(*arguments: str) -> list[str]:
    """What `hfvlm` prints, with nothing on stderr."""
    code = [sys.executable, "-c", "from hfvlm.cli import main; main()"]
    result = subprocess.run([*code, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()
