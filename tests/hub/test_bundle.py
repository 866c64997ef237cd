"""What travels with a saved model: how it is cut, what is written, and that it works where hfvlm is not installed."""

import ast
import difflib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import tiny_config, tiny_model, tiny_processor
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import hfvlm
from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.encoders.vit import VitTower
from hfvlm.hub.bundle import BundleError, flatten
from hfvlm.registry import ARCHITECTURES, auto_class, find, load
from hfvlm.saving import MANIFEST, edit_json


MODEL_TYPE, CAPTIONER = "hfvlm_blip", "AutoModelForImageTextToText"
SOURCE = Path(hfvlm.__file__).parent


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def config_of(folder: Path) -> dict:
    """config.json without the dtype of sub-configs, which transformers fills in when it loads."""
    config = read(folder, "config.json")
    return {key: {**value, "dtype": None} if "_config" in key else value for key, value in config.items()}


def code(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A captioner and its processor."""
    folder = tmp_path_factory.mktemp("saved") / "captioner-1.0"
    tiny_model(MODEL_TYPE, CAPTIONER).save_pretrained(folder)
    tiny_processor(MODEL_TYPE, prompt="a picture of ").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def clean(saved, photo, tmp_path_factory) -> tuple[dict, Path]:
    """What a Python without hfvlm saw (see clean.py), and the folders it saved."""
    work = tmp_path_factory.mktemp("clean")
    env = {**os.environ, "HF_HOME": str(work / "home"), "HF_MODULES_CACHE": str(work / "modules")}
    env.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="warning")
    script = [sys.executable, Path(__file__).with_name("clean.py"), saved, work, photo]
    run = subprocess.run(list(map(str, script)), env=env, cwd=work, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return torch.load(work / "seen.pt", weights_only=True), work


# -- how the code is cut


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_of_the_source_only_import_lines_change(row):
    paths = [*row.classes.values(), *(path for path, _ in row.pipelines.values())]
    files = flatten({path.split(":")[0] for path in paths})
    sources = {path.relative_to(SOURCE).with_suffix("").parts: path for path in SOURCE.rglob("*.py")}
    sources = {parts: path for parts, path in sources.items() if parts[0] != "assets"}  # built-in models carry code
    for name, text in files.items():
        stem = name.removesuffix(".py")
        (source,) = [p for parts, p in sources.items() if stem in ("_".join(parts), "_".join(parts[2:]))]
        before, after = source.read_text().splitlines(), text.decode().splitlines()
        for line in difflib.ndiff(before, after):
            if line[0] in "-+":
                assert line[2:].lstrip().startswith(("from hfvlm.", "from .")), f"{name}: {line}"


def test_transformers_scanners_find_the_modules_and_need_nothing_but_what_transformers_brings(saved):
    for name in code(saved):
        for needed in get_relative_imports(saved / name):
            assert f"{needed}.py" in code(saved), f"{name} imports {needed}"
        for library in get_imports(saved / name):
            assert library != "hfvlm" and importlib.util.find_spec(library), f"{name} imports {library}"
        for node in ast.walk(ast.parse((saved / name).read_text())):
            assert not isinstance(node, ast.ImportFrom) or node.level == 0 or node.module, f"{name}: from . import"


def package(tmp_path: Path, **files: str) -> Path:
    """A package like hfvlm; `nn__a` is nn/a.py."""
    for name, text in files.items():
        path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_closure_is_followed_through_functions_and_many_lines_but_not_into_try(tmp_path):
    source = package(
        tmp_path,
        nn__a="import os\nfrom hfvlm.nn.b import (  # why\n    x,\n    y,\n)\n",
        nn__b="def f():\n    from hfvlm.models.m.modeling_m import z\n    return z\n",
        models__m__modeling_m="try:\n    import cv2\n    from hfvlm.cli import x\nexcept ImportError:\n    pass\n",
    )
    files = flatten(["hfvlm.nn.a"], source)
    assert set(files) == {"nn_a.py", "nn_b.py", "modeling_m.py"}
    assert files["nn_a.py"] == b"import os\nfrom .nn_b import (  # why\n    x,\n    y,\n)\n"
    assert files["nn_b.py"] == b"def f():\n    from .modeling_m import z\n    return z\n"
    assert files["modeling_m.py"] == (source / "models/m/modeling_m.py").read_bytes()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import cv2", "cv2 may not be installed"),
        ("def f():\n    from scipy.io import wavfile", "scipy may not be installed"),
        ("from hfvlm.registry import load", "hfvlm.registry does not travel"),
        ("from hfvlm.cli.main import app", "hfvlm.cli.main does not travel"),
        ("from hfvlm import nn", "hfvlm does not travel"),
        ("from hfvlm.nn import b", "no single module"),
        ("import hfvlm.nn.b", "write it as `from hfvlm.nn.b import ...`"),
        ("x = 1; from hfvlm.nn.b import y", "on a line of its own"),
        ("from .b import y", "write the full name"),
        ('"""\nfrom .b import y\n"""', "take a line of its text for an import of b"),
    ],
)
def test_what_cannot_travel_is_an_error_that_names_module_and_import(tmp_path, statement, message):
    source = package(tmp_path, nn__a=statement, nn__b="y = 1\n", nn____init__="", cli__main="app = 1\n")
    with pytest.raises(BundleError, match=r"hfvlm\.nn\.a") as error:
        flatten(["hfvlm.nn.a"], source)
    assert message in str(error.value)


def test_two_modules_may_not_become_one_file(tmp_path):
    source = package(tmp_path, nn__a="from hfvlm.nn_b import y\nfrom hfvlm.nn.b import x\n", nn__b="", nn_b="")
    with pytest.raises(BundleError, match=r"hfvlm\.nn\.b.*nn_b\.py|hfvlm\.nn_b.*nn_b\.py"):
        flatten(["hfvlm.nn.a"], source)


# -- what is written


def test_the_manifest_lists_every_module_with_its_hash(saved):
    manifest = read(saved, MANIFEST)
    assert manifest["hfvlm"] == hfvlm.__version__
    assert set(manifest["files"]) == code(saved) != set()
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == digest


def test_the_configs_name_code_that_is_there(saved):
    config, row = read(saved, "config.json"), find(MODEL_TYPE)
    assert set(config["auto_map"]) == {"AutoConfig", *row.heads}
    assert set(config["custom_pipelines"]) == set(row.pipelines)
    references = [*config["auto_map"].values(), read(saved, "processor_config.json")["auto_map"]["AutoProcessor"]]
    for task in config["custom_pipelines"].values():
        references.append(task["impl"])
        assert all(hasattr(transformers, name) for name in task["pt"])
    for reference in references:
        module, name = reference.split(".")
        assert f"class {name}(" in (saved / f"{module}.py").read_text()


def test_saving_leaves_the_model_as_it_was_and_keeps_attention_out_of_the_folder(saved, tmp_path):
    model = transformers.AutoModelForImageTextToText.from_pretrained(saved, attn_implementation="eager")
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before and model.config._attn_implementation == "eager"
    text = (tmp_path / "config.json").read_text()
    assert not [name for name in ("attn_implementation", "eager", "sdpa", "flash") if name in text]
    assert config_of(tmp_path) == config_of(saved)


def test_a_null_in_a_config_survives(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": null, "b": 1}')
    edit_json(path, {"b": None, "c": 2})
    assert json.loads(path.read_text()) == {"a": None, "c": 2}


def test_only_the_main_process_writes_code(tmp_path):
    tiny_model(MODEL_TYPE, CAPTIONER).save_pretrained(tmp_path, is_main_process=False)
    assert not code(tmp_path) and not (tmp_path / MANIFEST).exists()


def test_a_file_is_no_place_to_save_in(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="save_directory must be a folder"):
        tiny_model(MODEL_TYPE, CAPTIONER).save_pretrained(tmp_path / "file")


def test_a_tower_alone_is_saved_without_code(tmp_path):
    tower = VitTower(VitTowerConfig(**tiny_config(MODEL_TYPE).vision_config.to_dict()))
    tower.save_pretrained(tmp_path)
    assert not code(tmp_path) and "auto_map" not in read(tmp_path, "config.json")
    again = VitTower.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tower.state_dict().values(), again.state_dict().values()))


def test_code_of_others_is_left_to_transformers(saved, tmp_path, monkeypatch):
    """A package that derives from a head here: no bundle of ours under its name, and nothing that dangles."""
    package(
        tmp_path / "site",
        third_party="from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration\n\n\n"
        "class TheirCaptioner(BlipForConditionalGeneration):\n    pass\n",
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    theirs = load("third_party:TheirCaptioner")
    model = theirs.from_pretrained(saved)
    model.save_pretrained(tmp_path / "plain")
    assert not code(tmp_path / "plain")
    assert not {"auto_map", "custom_pipelines"} & set(read(tmp_path / "plain", "config.json"))

    monkeypatch.setattr(theirs, "_auto_class", None)
    theirs.register_for_auto_class("AutoModelForImageTextToText")
    model.save_pretrained(tmp_path / "theirs")
    assert code(tmp_path / "theirs") == {"third_party.py"}
    assert read(tmp_path / "theirs", "config.json")["auto_map"] == {CAPTIONER: "third_party.TheirCaptioner"}


# -- the card


def test_the_card_says_how_to_use_the_model_and_is_never_overwritten(saved, tmp_path):
    text = (saved / "README.md").read_text()
    head = text.split("---")[1]
    assert "library_name: transformers" in head and "pipeline_tag: image-to-text" in head and "license" not in head
    for block in text.split("```python")[1:]:
        compile(block.split("```")[0], "README.md", "exec")
    assert "trust_remote_code=True" in text and "revision=" in text and MANIFEST in text

    (tmp_path / "README.md").write_text("mine")
    tiny_model(MODEL_TYPE, CAPTIONER).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"

    tiny_model(MODEL_TYPE, "AutoModel").save_pretrained(tmp_path / "features")
    text = (tmp_path / "features" / "README.md").read_text()
    assert "import hfvlm" in text and "AutoModel.from_pretrained" in text and "pipeline_tag" not in text


# -- where hfvlm is imported


@pytest.mark.parametrize("only_processor", [False, True])
@pytest.mark.parametrize("trust", [None, False, True])
def test_auto_classes_take_hfvlms_own_code_where_it_is_imported(saved, tmp_path, trust, only_processor):
    folder = shutil.copytree(saved, tmp_path / "copy")
    if only_processor:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=trust)
    assert type(processor) is load(find(MODEL_TYPE).processor) and processor.prompt == "a picture of "
    if not only_processor:
        for auto, path in find(MODEL_TYPE).heads.items():
            model = auto_class(auto).from_pretrained(folder, trust_remote_code=trust)
            assert type(model) is load(path)


def test_no_name_of_transformers_own_is_left_with_the_processor(saved):
    """Such a name would make AutoProcessor return transformers' class without a word."""
    assert read(saved, "processor_config.json")["processor_class"] == "hfvlm.BlipProcessor"
    assert "processor_class" not in read(saved, "tokenizer_config.json")
    processor = transformers.AutoProcessor.from_pretrained(saved)
    processor.save_pretrained(saved.parent / "again")
    processor.tokenizer.save_pretrained(saved.parent / "tokenizer")
    assert "processor_class" not in read(saved.parent / "tokenizer", "tokenizer_config.json")


# -- where it is not installed


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a) if isinstance(a, dict) else a == b


@pytest.mark.parametrize("which", ["first", "again"])
def test_without_hfvlm_the_folder_gives_the_same_to_the_bit(clean, saved, photo, which):
    seen = clean[0]
    assert seen["blocked"]
    outputs = dict(seen[which])
    assert all(name.startswith("transformers_modules.") for name in outputs.pop("modules"))

    model = transformers.AutoModelForImageTextToText.from_pretrained(saved).eval()
    processor = transformers.AutoProcessor.from_pretrained(saved)
    inputs = processor(images=Image.open(photo), text="a dog")
    pipe = hfvlm.pipeline("image-to-text", model=model, processor=processor, device="cpu")
    with torch.no_grad():
        expected = {
            "inputs": dict(inputs),
            "logits": model(**inputs).logits,
            "features": transformers.AutoModel.from_pretrained(saved).eval()(inputs["pixel_values"]).last_hidden_state,
            "ids": model.generate(**inputs, num_beams=2, max_new_tokens=6),
            "caption": pipe(str(photo), max_new_tokens=6)[0]["generated_text"],
        }
    assert expected["caption"]
    assert [key for key in expected if not same(expected[key], outputs[key])] == []


@pytest.mark.parametrize("name", ["again", "thrice", "piped"])
def test_saved_again_without_hfvlm_nothing_is_lost(clean, saved, name):
    folder = clean[1] / name
    assert code(folder) == code(saved)
    assert all((folder / file).read_bytes() == (saved / file).read_bytes() for file in code(saved))
    assert read(folder, MANIFEST) == read(saved, MANIFEST)
    assert config_of(folder) == config_of(saved)
    processor = read(folder, "processor_config.json")
    assert processor["processor_class"] == "hfvlm.BlipProcessor"
    assert "processor_class" not in read(folder, "tokenizer_config.json")
    # and hfvlm reads what was saved without it
    assert type(transformers.AutoProcessor.from_pretrained(folder)) is load(find(MODEL_TYPE).processor)
    assert type(transformers.AutoModelForImageTextToText.from_pretrained(folder)).__module__.startswith("hfvlm.")


def test_another_head_saved_without_hfvlm_keeps_the_code_of_all(clean, saved):
    folder = clean[1] / "features"
    assert code(folder) == code(saved)
    assert read(folder, "config.json")["architectures"] == ["BlipModel"]
    assert read(folder, "config.json")["auto_map"] == read(saved, "config.json")["auto_map"]


def test_processor_files_alone_load_without_hfvlm_only_when_trusted(clean):
    assert clean[0]["processor"].startswith("transformers_modules.")
    assert "trust_remote_code=True" in clean[0]["untrusted"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("gone", "is gone"),
        ("changed", "outputs.py"),
        ("edited", "pipelines_image_to_text.py"),
        ("unlisted", "does not list the modules"),
        ("listless", "does not list the modules"),
    ],
)
def test_without_the_place_it_came_from_the_pipeline_is_dropped_with_a_warning(clean, change, reason):
    seen, work = clean
    (warning,) = seen[change]
    assert "custom_pipelines['image-to-text']" in warning and reason in warning
    config = read(work / change, "config.json")
    assert "custom_pipelines" not in config
    assert {f"{reference.split('.')[0]}.py" for reference in config["auto_map"].values()} <= code(work / change)
    assert seen["reloaded"] == "BlipForConditionalGeneration"
