"""The code that travels with a saved model: what its classes import of hfvlm, flattened into one folder.

transformers can load a model with code that lies beside the weights, provided that it lies flat and imports its own
modules as `from .module import name`. So `hfvlm/nn/attention.py` becomes `nn_attention.py`, a file of
`models/<arch>/` keeps its name, and of the text only the import lines change.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hfvlm.hub.card import write_card
from hfvlm.registry import ARCHITECTURES, Architecture
from hfvlm.saving import edit_json, write_code
from hfvlm.version import __version__


PACKAGE = Path(__file__).resolve().parents[1]

#: rooms whose modules may travel; so may those that lie in no room, but for what only the installed package needs
ROOMS = {"nn", "encoders", "losses", "models", "pipelines"}
STAYS = {"registry", "version", "builtin"}

#: what code that travels may import besides the standard library: transformers' own needs
LIBRARIES = {"torch", "transformers", "PIL", "numpy", "huggingface_hub", "safetensors"}

# how transformers finds the modules that a module needs, wherever in the text it matches
_RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\S+)\s+import|import\s+\.(\S+)\s*$)", re.MULTILINE)


class BundleError(RuntimeError):
    """A module cannot travel; the message names it and what it imports."""


def write_bundle(saved: Any, save_directory: Path) -> None:
    """Writes the code of a model or processor beside it, and what tells transformers of it.

    config.json gets `auto_map` for the config and every head of the architecture and `custom_pipelines`,
    processor_config.json gets `auto_map` for the processor. A model also gets a card, if the folder has none.
    What is in no row of the registry as a whole (a tower alone) or not all in hfvlm is left as transformers saved it.

    Raises:
        BundleError: the code imports what may not be there where the folder is loaded.
    """
    row = _row(saved)
    if row is None:
        return
    config, processor = save_directory / "config.json", save_directory / "processor_config.json"
    is_model = hasattr(saved, "config")
    if not (config if is_model else processor).is_file():  # adapters alone are saved without
        return
    write_code(save_directory, flatten(_modules(row)), __version__)
    if is_model:
        heads = {auto: _reference(path) for auto, path in row.heads.items()}
        tasks = {task: {"impl": _reference(path), "pt": [auto]} for task, (path, auto) in row.pipelines.items()}
        edit_json(
            config,
            {"auto_map": {"AutoConfig": _reference(row.config), **heads}, "custom_pipelines": tasks or None},
        )
        write_card(saved, row, heads, save_directory)
    else:
        edit_json(processor, {"auto_map": {"AutoProcessor": _reference(row.processor)}})


def _row(saved: Any) -> Architecture | None:
    """The architecture of a model or processor, if all of it is hfvlm's."""
    if hasattr(saved, "config"):
        row = ARCHITECTURES.get(saved.config.model_type)
    else:
        path = f"{type(saved).__module__}:{type(saved).__qualname__}"
        row = next((row for row in ARCHITECTURES.values() if row.processor == path), None)
    return row if row is not None and all(m.startswith("hfvlm.") for m in _modules(row)) else None


def _modules(row: Architecture) -> list[str]:
    paths = [*row.classes.values(), *(path for path, _ in row.pipelines.values())]
    return sorted({path.split(":")[0] for path in paths})


def _reference(path: str) -> str:
    """`hfvlm.models.blip.modeling_blip:BlipModel` -> `modeling_blip.BlipModel`."""
    module, name = path.split(":")
    return f"{flat_name(module)}.{name}"


def flat_name(module: str) -> str:
    """`hfvlm.nn.attention` -> `nn_attention`; `hfvlm.models.blip.modeling_blip` -> `modeling_blip`."""
    parts = module.split(".")[1:]
    return "_".join(parts[2:] if parts[0] == "models" else parts)


def flatten(modules: Iterable[str], package: Path = PACKAGE) -> dict[str, bytes]:
    """Modules of hfvlm and all that they import of it, as files for one folder.

    Args:
        modules: dotted names.
        package: the folder of hfvlm's source.

    Returns:
        file name -> text.

    Raises:
        BundleError: an import of something that does not travel, two modules that would share a file, or an import
            that transformers' scanner would not see, or see where there is none.
    """
    files: dict[str, bytes] = {}
    origin: dict[str, str] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        name = flat_name(module)
        if origin.setdefault(name, module) != module:
            raise BundleError(f"{module} and {origin[name]} would both be {name}.py in a saved folder: rename one")
        if f"{name}.py" not in files:
            text, needed = _rewrite(module, package)
            files[f"{name}.py"] = text.encode()
            todo += needed
    return files


def _rewrite(module: str, package: Path) -> tuple[str, list[str]]:
    """A module's text with relative imports, and the modules of hfvlm that it imports."""
    text = package.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
    lines, needed = text.splitlines(keepends=True), []
    for node in _imports(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        statement = f"{module}, line {node.lineno}: `{ast.unparse(node)}`"
        if isinstance(node, ast.ImportFrom) and node.level:
            raise BundleError(f"{statement}: write the full name of the module")
        for top in {name.split(".")[0] for name in names} - {"hfvlm"}:
            if top not in LIBRARIES | sys.stdlib_module_names:
                raise BundleError(f"{statement}: {top} may not be installed where a saved model is loaded")
        for name in names:
            if name.split(".")[0] != "hfvlm":
                continue
            if not _travels(name, package):
                raise BundleError(f"{statement}: {name} does not travel with a saved model, or is no single module")
            pattern = rf"^(\s*)from\s+{re.escape(name)}\s+import\b"
            line, found = re.subn(pattern, rf"\1from .{flat_name(name)} import", lines[node.lineno - 1])
            if not found:
                raise BundleError(f"{statement}: write it as `from {name} import ...`, on a line of its own")
            lines[node.lineno - 1] = line
            needed.append(name)
    text = "".join(lines)
    seen = {a or b for a, b in _RELATIVE_IMPORT.findall(text)}
    if seen != {flat_name(name) for name in needed}:
        extra = ", ".join(sorted(seen - {flat_name(name) for name in needed}))
        raise BundleError(f"{module}: transformers would take a line of its text for an import of {extra}")
    return text, needed


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, wherever it stands, but those that may fail: inside `try`, where transformers ignores them too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not isinstance(node, ast.Try):
            yield from _imports(node)


def _travels(module: str, package: Path) -> bool:
    parts = module.split(".")[1:]
    allowed = parts[0] in ROOMS if len(parts) > 1 else parts and parts[0] not in STAYS
    return bool(allowed) and package.joinpath(*parts).with_suffix(".py").is_file()
