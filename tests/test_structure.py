"""What holds of the source as a whole: who may import whom, how long a file is, what importing the package costs."""

import ast
import configparser
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from hfvlm.registry import ARCHITECTURES, auto_class, load


ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "hfvlm"
ASSETS = SOURCE / "assets"  # saved models, which carry their code: not modules of the package
MODULES = sorted(path for path in SOURCE.rglob("*.py") if not path.is_relative_to(ASSETS))
CONVERSION = sorted((ROOT / "conversion").rglob("*.py"))

#: rooms from the ground up; a module imports from its own level and from the ones below
LEVELS = [
    {"nn", "encoders", "losses", "modeling", "generation", "beam_search", "processing", "saving", "outputs"}
    | {"images", "registry", "version", "two_tower", "two_tower_config", "two_tower_processing"}
    | {"fusion", "fusion_config", "fusion_training", "fusion_classes", "momentum_teacher", "reranking"}
    | {"answering", "answer_ranking", "grounding"}
    | {"pixels", "nearest", "embedder"},
    {"models"},
    {"pipelines", "data", "training", "evaluation", "export", "hub", "conversion", "builtin", "auto"},
    {"serving", "cli", "lavis"},
]
#: on the ground floor, too, imports point one way; a room may import from itself
GROUND = {
    "version": set(),
    "registry": set(),
    "images": set(),
    "pixels": {"images"},
    "nearest": set(),
    "embedder": {"images", "pixels", "processing"},
    "outputs": set(),
    "saving": set(),
    "beam_search": set(),
    "modeling": {"saving"},
    "generation": {"beam_search", "outputs"},
    "processing": {"images", "saving"},
    "nn": {"outputs"},
    "losses": {"nn"},
    "encoders": {"nn", "modeling", "outputs"},
    "two_tower_config": {"encoders"},
    "two_tower_processing": {"processing"},
    "momentum_teacher": {"losses"},
    "reranking": set(),
    "fusion_config": {"encoders", "losses"},
    "fusion": {"fusion_config", "encoders", "modeling", "nn", "outputs"},
    "fusion_training": {"fusion", "fusion_config", "momentum_teacher", "encoders", "losses", "nn", "outputs"},
    "answer_ranking": {"losses", "outputs"},
    "grounding": {"fusion"},
    "answering": {"answer_ranking", "fusion", "fusion_config", "generation", "encoders", "losses", "outputs"},
    "fusion_classes": {"fusion", "fusion_config", "momentum_teacher", "encoders", "losses", "nn", "outputs"},
    "two_tower": {"two_tower_config", "encoders", "losses", "nn", "modeling"},
}
#: what travels to the Hub with a model, and all that it may import from outside
TRAVELS = {"models", *GROUND} - {"version", "registry"}
TRAVELLERS_NEED = {"torch", "transformers", "PIL", "numpy", "huggingface_hub"}
#: (module, what it imports by name, where hfvlm is installed): may point upwards
IMPORTED_BY_NAME = {("saving", "hfvlm.hub.bundle")}


def dotted(path: Path) -> str:
    """`src/hfvlm/nn/mlp.py` -> `nn.mlp`; the package itself is ``."""
    base = SOURCE if path.is_relative_to(SOURCE) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def may_fail(node: ast.AST) -> bool:
    """Whether this is a `try` that goes on where an import fails."""
    return isinstance(node, ast.Try) and any(
        handler.type is not None and ast.unparse(handler.type) in ("ImportError", "ModuleNotFoundError")
        for handler in node.handlers
    )


@cache
def imports(path: Path, optional: bool = True) -> list[str]:
    """Every module that a file imports, anywhere in it, by statement or by name.

    Args:
        optional: also those that it can do without.
    """
    known = {f"hfvlm.{dotted(module)}" for module in MODULES}
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spared = {id(part) for node in ast.walk(tree) if may_fail(node) for step in node.body for part in ast.walk(step)}
    for node in ast.walk(tree):
        if not optional and id(node) in spared:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute; saving makes them relative"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in known else node.module for name in submodules]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return sorted(name for name in set(found) if (dotted(path), name) not in IMPORTED_BY_NAME)


def room(module: str) -> str:
    return module.removeprefix("hfvlm.").split(".")[0]


def level(name: str) -> int:
    levels = [i for i, names in enumerate(LEVELS) if name in names]
    assert levels, f"{name} is in no level: say in LEVELS who may import it"
    return levels[0]


@pytest.mark.parametrize("path", [path for path in MODULES + CONVERSION if dotted(path)], ids=dotted)
def test_imports_point_one_way(path):
    here = room(dotted(path))
    for imported in imports(path):
        if not imported.startswith("hfvlm."):
            continue
        there = room(imported)
        assert level(there) <= level(here), f"{dotted(path)} may not import {imported}"
        if here in GROUND:
            assert there in {here, *GROUND[here]}, f"{dotted(path)} may not import {imported}"


@pytest.mark.parametrize("path", [path for path in MODULES if room(dotted(path)) in TRAVELS], ids=dotted)
def test_what_travels_to_the_hub_needs_nothing_but_torch_and_transformers(path):
    for imported in imports(path, optional=False):
        top = imported.split(".")[0]
        if top == "hfvlm":
            # an architecture's __init__ fills the registry, and stays at home
            fine = TRAVELS | ({"registry"} if path.name == "__init__.py" else set())
            assert room(imported) in fine, f"{dotted(path)} may not import {imported}"
        else:
            assert top in TRAVELLERS_NEED or top in sys.stdlib_module_names, f"{dotted(path)} may not import {top}"
        if top == "huggingface_hub" and dotted(path) != "saving":
            assert imported == "huggingface_hub.dataclasses", f"{dotted(path)} may not import {imported}"


@pytest.mark.parametrize(
    "path",
    MODULES + [path for top in ("conversion", "tests", "examples") for path in sorted((ROOT / top).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_every_module_says_what_it_is():
    silent = [dotted(path) for path in MODULES + CONVERSION if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent in ([], ["version"])


def test_setup_cfg_lists_the_packages_on_disk():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    on_disk = {
        ".".join(path.parent.relative_to(SOURCE.parent).parts) for path in MODULES if path.name == "__init__.py"
    }
    on_disk |= {".".join(["hfvlm", *path.parent.relative_to(ROOT).parts]) for path in CONVERSION}
    assert listed == sorted(on_disk)
    with_code = {".".join(path.parent.relative_to(SOURCE.parent).parts) for path in MODULES}
    assert with_code <= on_disk, "a folder with modules lacks its __init__.py"


def test_setup_cfg_packs_every_other_file():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["hfvlm"].replace(",", " ").split()
    packed = {path for pattern in patterns for path in SOURCE.glob(pattern) if path.is_file()}
    code = {*MODULES, *SOURCE.rglob("*.pyc")}
    assert {path for path in SOURCE.rglob("*") if path.is_file()} - code == packed


def test_checkpoints_are_only_ever_unpickled_as_weights():
    """By torch, or by an unpickler that says itself what every name in the file stands for."""
    for path in [*MODULES, *CONVERSION, *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Unpickler") for base in node.bases):
                methods = {part.name: ast.unparse(part) for part in node.body if isinstance(part, ast.FunctionDef)}
                assert "find_class" in methods, f"{where}: takes any name for what the file says"
                assert "super()" not in methods["find_class"], f"{where}: imports what the file asks for"
            if not isinstance(node, ast.Call):
                continue
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "pickle.UnpicklingError":
                continue
            if called in ("torch.load", "torch.hub.load_state_dict_from_url"):
                assert keywords.get("weights_only") == "True", f"{where}: {called} without weights_only=True"
            assert called.split(".")[0] not in ("pickle", "dill", "joblib"), f"{where}: {called}"
            assert keywords.get("trust_remote_code") != "True", f"{where}: the user decides on trust_remote_code"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_importing_hfvlm_imports_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "numpy", "PIL", "huggingface_hub", "typer", "rich")
    assert python(f"import sys, hfvlm; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_auto_classes_learn_of_hfvlm_without_its_modeling_code():
    code = """
import sys
import hfvlm
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.for_model("hfvlm_blip")
print([name for name in sys.modules if name.startswith("hfvlm.") and "modeling" in name], type(config).__name__)
print(type(config) in AutoModel._model_mapping, type(config) in AutoModelForImageTextToText._model_mapping)
print(type(AutoConfig.for_model("hfvlm_clip")) in hfvlm.AutoModelForImageEncoding._model_mapping)
print([name for name in sys.modules if name.startswith("hfvlm.") and "modeling" in name])
"""
    assert python(code).splitlines() == ["[] BlipConfig", "True True", "True", "[]"]


def test_auto_classes_that_came_first_learn_of_hfvlm_too():
    code = """
from transformers import AutoConfig, AutoModel
import hfvlm
print(type(AutoConfig.for_model("hfvlm_blip")) in AutoModel._model_mapping)
"""
    assert python(code) == "True"


@pytest.mark.parametrize(
    "path",
    sorted({path for row in ARCHITECTURES.values() for path in row.classes.values()}),
)
def test_every_registered_class_is_documented(path):
    cls = load(path)
    assert cls.__doc__, f"{cls.__name__} has no docstring"
    inherited = {base.__doc__ for base in cls.__mro__[1:]}
    assert cls.__doc__ not in inherited, f"{cls.__name__} has only its parent's docstring"
    module = inspect.getmodule(cls)
    assert module.__doc__


every_architecture = pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)


@every_architecture
def test_every_architecture_has_a_card_that_names_its_classes(row):
    card = (ROOT / "model_cards" / f"{row.name}.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {row.title}\n")
    missing = [name for name in [row.model_type, *row.classes] if f"`{name}`" not in card]
    assert missing == []


@every_architecture
def test_every_architecture_is_complete(row):
    config = load(row.config)
    assert config.model_type == row.model_type == f"hfvlm_{row.name}"
    assert row.title != row.model_type
    assert type(config.variant("tiny")) is config
    assert row.processor and "AutoModel" in row.heads
    for auto, path in row.heads.items():
        assert load(path).config_class is config, f"{auto}: {path}"
        assert config in auto_class(auto)._model_mapping, f"{auto} does not know {row.name}"
    for task, (pipeline, auto) in row.pipelines.items():
        assert auto in row.heads, f"{task} runs {auto}, which {row.name} does not have"
        assert inspect.isclass(load(pipeline))
