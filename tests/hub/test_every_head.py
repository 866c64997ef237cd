"""Every head's folder: what it says of its code, and that the code runs where hfvlm is not installed, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from contract.heads import CLASSES, REGISTERED, Head, assert_close, every, tensors, tiny_batch
from PIL import Image
from tiny import tiny_processor

import hfvlm
from hfvlm.registry import auto_class, find
from hfvlm.saving import MANIFEST


def autos_of(head: Head) -> list[str]:
    """The Auto classes that load the folder of a head: its own, and of the whole architecture's model, all others."""
    own = [other.auto_class for other in REGISTERED if other.cls is head.cls]
    others = [other.auto_class for other in CLASSES if other.model_type == head.model_type]
    return list(dict.fromkeys([*own, *others])) if "AutoModel" in own else own


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder of each head by its class's name, with processor; photos; and what goes into each model."""
    work = tmp_path_factory.mktemp("work")
    batches: dict = {}
    for head in CLASSES:
        model = head.model()
        model.save_pretrained(work / head.cls.__name__)
        tiny_processor(head.model_type).save_pretrained(work / head.cls.__name__)
        batches[head.cls.__name__] = {
            other.auto_class: tiny_batch(other.model()) for other in REGISTERED if other.model_type == head.model_type
        }
    torch.save(batches, work / "batches.pt")
    (work / "heads.json").write_text(json.dumps({head.cls.__name__: autos_of(head) for head in CLASSES}))
    (work / "photos").mkdir()
    for path in (work / "photo.jpg", work / "photos" / "photo.jpg"):
        Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 60).convert("RGB").save(path)
    return work


@pytest.fixture(scope="module")
def clean(work) -> dict:
    """What a Python without hfvlm saw (see clean_heads.py)."""
    env = {**os.environ, "HF_HOME": str(work / "home"), "HF_MODULES_CACHE": str(work / "modules")}
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    script = [sys.executable, str(Path(__file__).with_name("clean_heads.py")), str(work)]
    run = subprocess.run(script, env=env, cwd=work, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(work / "seen.pt", weights_only=True)


def nested(outputs: dict) -> dict[str, torch.Tensor]:
    return tensors({name: value for name, value in outputs.items() if value is not None})


@every(CLASSES)
def test_auto_map_names_the_code_of_every_head(head, work):
    folder, row = work / head.cls.__name__, find(head.model_type)
    config = read(folder / "config.json")
    assert config["architectures"] == [head.cls.__name__]
    assert set(config["auto_map"]) == {"AutoConfig", *row.heads}
    assert set(config.get("custom_pipelines", {})) == set(row.pipelines)
    references = [*config["auto_map"].values(), read(folder / "processor_config.json")["auto_map"]["AutoProcessor"]]
    for task in config.get("custom_pipelines", {}).values():
        references.append(task["impl"])
        assert all(hasattr(transformers, name) for name in task["pt"])
    for reference in references:
        module, name = reference.split(".")
        assert f"class {name}(" in (folder / f"{module}.py").read_text()


@every(CLASSES)
def test_where_hfvlm_is_imported_its_own_code_is_taken(head, work):
    for auto in autos_of(head):
        model = auto_class(auto).from_pretrained(work / head.cls.__name__, trust_remote_code=True)
        (expected,) = [
            other.cls for other in REGISTERED if (other.model_type, other.auto_class) == (head.model_type, auto)
        ]
        assert type(model) is expected


@every(CLASSES)
def test_without_hfvlm_every_head_gives_the_same_to_the_bit(head, work, clean):
    name = head.cls.__name__
    for auto in autos_of(head):
        seen = clean["heads"][f"{name} {auto}"]
        assert seen["module"].startswith("transformers_modules.")
        model, info = auto_class(auto).from_pretrained(work / name, output_loading_info=True)
        assert seen["class"] == type(model).__name__
        assert seen["missing_keys"] == sorted(info["missing_keys"])
        assert seen["unexpected_keys"] == sorted(info["unexpected_keys"]) == []
        if "outputs" in seen:
            batch = torch.load(work / "batches.pt", weights_only=True)[name][auto]
            with torch.no_grad():
                expected = tensors(model.eval()(**batch))
            assert_close(nested(seen["outputs"]), expected, rtol=0, atol=0)
    assert "outputs" in clean["heads"][f"{name} {autos_of(head)[0]}"]


@every(CLASSES)
def test_saved_again_without_hfvlm_nothing_is_lost(head, work, clean):
    first, again = work / head.cls.__name__, work / "again" / head.cls.__name__
    assert code(again) == code(first)
    assert read(again / MANIFEST) == read(first / MANIFEST)
    ours, theirs = read(first / "config.json"), read(again / "config.json")
    for field in ("architectures", "auto_map", "custom_pipelines", "model_type"):
        assert ours.get(field) == theirs.get(field), field
    model = auto_class(head.auto_class).from_pretrained(again)
    state = head.model().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@every(CLASSES)
def test_the_processor_travels_too(head, clean):
    module, _, name = clean["processors"][head.cls.__name__].partition(":")
    assert module.startswith("transformers_modules.") and name == find(head.model_type).processor.split(":")[1]


@every(CLASSES)
def test_both_examples_of_the_card_load_the_head(head, work, clean, monkeypatch):
    assert clean["cards"][head.cls.__name__] == head.cls.__name__
    text = (work / head.cls.__name__ / "README.md").read_text()
    installed = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(work)
    scope: dict = {}
    exec(compile(installed.replace("path/to/this/folder", str(work / head.cls.__name__)), "README.md", "exec"), scope)
    model = scope["model"] if "model" in scope else scope["pipe"].model
    assert type(model) is head.cls
    assert "trust_remote_code" not in installed


def test_our_own_auto_class_is_public_and_trusts_nobody_without_being_told(work):
    (head, *_) = [head for head in REGISTERED if not hasattr(transformers, head.auto_class)]
    own = getattr(hfvlm, head.auto_class)
    assert own is auto_class(head.auto_class)
    for trust in (None, False, True):
        assert type(own.from_pretrained(work / head.cls.__name__, trust_remote_code=trust)) is head.cls
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        own.from_config(transformers.BertConfig())
