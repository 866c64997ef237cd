"""Pushing, with the real client against a Hub on this machine: what arrives, in how many commits, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from server import TOKEN, FakeHub
from tiny import tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor

import hfvlm
from hfvlm.saving import MANIFEST, UNNAMED


MODEL_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", MANIFEST}
PROCESSOR_FILES = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}


def run(mode: str, what: Path | str, work: Path, hub: FakeHub) -> dict:
    """One run of pusher.py."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env.update(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HOME=str(work / "home"), HF_HUB_DISABLE_XET="1")
    env.update(HF_MODULES_CACHE=str(work / "modules"), HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1")
    script = [sys.executable, Path(__file__).with_name("pusher.py"), mode, what, work]
    done = subprocess.run(list(map(str, script)), env=env, cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((work / f"{mode}.json").read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "captioner"
    tiny_model("hfvlm_blip", "AutoModelForImageTextToText").save_pretrained(folder)
    tiny_processor("hfvlm_blip").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pushed(saved, tmp_path_factory) -> tuple[FakeHub, dict, dict, Path]:
    """The Hub after both runs, what the runs saw, and where they worked."""
    work = tmp_path_factory.mktemp("work")
    Image.new("RGB", (40, 30), "red").save(work / "photo.png")
    with FakeHub() as hub:
        return hub, run("with-hfvlm", saved, work, hub), run("without-hfvlm", "me/captioner", work, hub), work


def code_of(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


def test_everything_arrives_in_one_commit(pushed, saved):
    hub, seen, _, _ = pushed
    commit = hub.pushed("me/captioner")[0]
    assert set(commit.changed) == MODEL_FILES | PROCESSOR_FILES | code_of(saved)
    assert commit.message == "Upload BlipForConditionalGeneration"
    assert hub.private["me/captioner"] and seen["url"] == f"{hub.url}/me/captioner/commit/{commit.oid}"
    same = code_of(saved) | {MANIFEST, "model.safetensors", "processor_config.json", "tokenizer.json"}
    assert [name for name in same if commit.files[name] != (saved / name).read_bytes()] == []
    writes = [request for request in hub.requests if "/me/again/" in request and request.startswith("POST")]
    assert writes == [f"POST /api/models/me/again/{step}/main" for step in ("preupload", "commit")]


def test_what_arrived_is_the_model(pushed, saved, tmp_path):
    for name, data in pushed[0].pushed("me/captioner")[0].files.items():
        (tmp_path / name).write_bytes(data)
    model, original = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (tmp_path, saved))
    assert all((a == b).all() for a, b in zip(model.state_dict().values(), original.state_dict().values()))
    image = Image.new("RGB", (20, 20), "blue")
    pipe = hfvlm.pipeline("image-to-text", model=str(tmp_path), device="cpu")
    original = hfvlm.pipeline(
        "image-to-text", model=original, processor=AutoProcessor.from_pretrained(saved), device="cpu"
    )
    assert pipe(image, max_new_tokens=5) == original(image, max_new_tokens=5)


def test_the_card_goes_by_the_repositorys_name_and_carries_tags(pushed):
    card = pushed[0].pushed("me/captioner")[0].files["README.md"].decode()
    assert '"me/captioner"' in card and UNNAMED not in card
    data = ModelCard(card).data
    assert {"hfvlm", "blip", "dogs"} <= set(data.tags) and data.library_name == "transformers"


def test_a_card_that_is_there_already_is_kept(pushed):
    first, second, third = pushed[0].pushed("me/captioner")[:3]
    assert second.message == "Better weights" and "README.md" not in second.changed
    assert second.files["README.md"] == first.files["README.md"]
    assert third.revision == "v2" and ("me/captioner", "v2") in pushed[0].branches
    assert "cats" in ModelCard(third.files["README.md"].decode()).data.tags


def test_a_processor_alone(pushed, saved):
    (commit,) = pushed[0].pushed("me/processor")
    assert set(commit.changed) == PROCESSOR_FILES | code_of(saved) | {MANIFEST, "README.md"}


def test_a_pull_request(pushed):
    hub, seen, _, _ = pushed
    assert [commit.pull_request for commit in hub.pushed("me/captioner")] == [False, False, False, True]
    assert seen["pull_request"].endswith("/discussions/1")


def test_saving_with_push_to_hub_pushes_what_was_saved_and_nothing_else(pushed, saved):
    (commit,) = pushed[0].pushed("me/run")
    assert set(commit.changed) == MODEL_FILES | code_of(saved)
    assert commit.message == "After training"
    (commit,) = pushed[0].pushed("me/named-by-folder")
    assert set(commit.changed) >= PROCESSOR_FILES | code_of(saved)


@pytest.mark.parametrize(
    ("failure", "messages"),
    [
        ("wrong_token", ["HfHubHTTPError", "401", "Nothing was committed to me/refused", "hf auth login"]),
        ("unreachable", ["ConnectionError", "cannot reach the Hub at http://127.0.0.1:9", "nothing was committed"]),
    ],
)
def test_a_push_that_fails_says_why_and_leaves_nothing(pushed, failure, messages):
    hub, seen, _, _ = pushed
    assert [text for text in messages if text not in seen[failure]] == []
    assert not [name for name in hub.private if name in ("me/refused", "me/unreachable")]


def test_a_processor_must_be_one(saved):
    model = AutoModelForImageTextToText.from_pretrained(saved)
    with pytest.raises(TypeError, match="processor must be a loaded processor, got PosixPath"):
        model.push_to_hub("me/captioner", processor=saved)


def test_from_the_hub_without_hfvlm_and_back(pushed, saved):
    hub, _, seen, work = pushed
    commit = hub.head("me/captioner", "main")
    assert seen["module"] == f"transformers_modules.me.captioner.{commit.oid}.modeling_blip"
    assert seen["warnings"] == [] and seen["caption"]
    assert code_of(work / "downloaded") == code_of(saved)
    assert json.loads((work / "downloaded" / MANIFEST).read_text())["hfvlm"] == hfvlm.__version__
    (again,) = hub.pushed("me/again")
    assert set(again.changed) == MODEL_FILES | PROCESSOR_FILES | code_of(saved)
    assert all(again.files[name] == (saved / name).read_bytes() for name in code_of(saved))
    assert again.files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
