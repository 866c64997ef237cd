"""One table of architectures: model_type -> config, processor, {Auto class: model class}.

Each folder under `models/` adds its row by naming its classes as "module:Class", so that filling the table imports no
torch and no transformers. The Auto classes of transformers learn of the rows the moment they are imported (or at
once, if they are already); a model's code is imported the first time that it is used.
"""

import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A row of the table; classes are "module:Class" strings.

    Args:
        model_type: as in config.json.
        title: the name people know it by.
        heads: Auto class of transformers (by name) -> model class.
        pipelines: task -> (pipeline class, Auto class of the model it runs).
    """

    model_type: str
    title: str
    config: str
    processor: str | None = None
    heads: dict[str, str] = field(default_factory=dict)
    pipelines: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Short name, as commands take it: `hfvlm_blip` -> `blip`."""
        return self.model_type.removeprefix("hfvlm_")

    @property
    def classes(self) -> dict[str, str]:
        """Public names of this architecture -> "module:Class"."""
        paths = [self.config, *([self.processor] if self.processor else []), *self.heads.values()]
        return {path.split(":")[1]: path for path in paths}


ARCHITECTURES: dict[str, Architecture] = {}


def load(path: str) -> Any:
    """The object that "module:name" names."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _path(cls: type | str) -> str:
    return cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"


def register(
    *,
    model_type: str,
    config: type | str,
    processor: type | str | None = None,
    heads: dict[str, type | str] | None = None,
    pipelines: dict[str, tuple[type | str, str]] | None = None,
    title: str | None = None,
) -> Architecture:
    """Adds an architecture: to hfvlm, and to the Auto classes of transformers.

    Args:
        model_type: its config's `model_type`.
        config, processor: classes, or "module:Class".
        heads: Auto class name -> model class, e.g. `{"AutoModelForImageTextToText": MyModel}`.
        pipelines: task -> (pipeline class, name of the Auto class that it runs).
        title: the name people know it by.

    Raises:
        ValueError: the `model_type` is taken by a different config.
    """
    row = Architecture(
        model_type=model_type,
        title=title or model_type,
        config=_path(config),
        processor=_path(processor) if processor else None,
        heads={auto: _path(cls) for auto, cls in (heads or {}).items()},
        pipelines={task: (_path(cls), auto) for task, (cls, auto) in (pipelines or {}).items()},
    )
    taken = ARCHITECTURES.get(model_type)
    if taken is not None and taken.config != row.config:
        raise ValueError(f"model_type {model_type!r} is already {taken.config}; give the new architecture another")
    ARCHITECTURES[model_type] = row
    for name, announce in _AUTO_MODULES.items():
        if name in sys.modules:
            announce(sys.modules[name], row)
    return row


def find(name: str) -> Architecture:
    """The architecture of a `model_type` or short name.

    Raises:
        ValueError: none is called that; names the nearest.
    """
    rows = {row.name: row for row in ARCHITECTURES.values()} | ARCHITECTURES
    if name not in rows:
        near = difflib.get_close_matches(name.lower(), rows, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown architecture {name!r}{hint} Known: {', '.join(sorted(r.name for r in ARCHITECTURES.values()))}"
        )
    return rows[name]


def auto_class(name: str) -> type:
    """The Auto class that `heads` names: of transformers, or hfvlm's own where transformers has none.

    Raises:
        ValueError: neither has it.
    """
    for package in ("transformers", "hfvlm.auto"):
        found = getattr(importlib.import_module(package), name, None)
        if found is not None:
            return found
    raise ValueError(f"neither transformers nor hfvlm has an Auto class {name!r}")


class LazyClass:
    """Stands in an Auto class's table for a class that is not imported yet, and becomes it on first use.

    Args:
        path: "module:Class".
        config: what the class has as `config_class`.
        name: what the table may look it up by; by default its own.
    """

    def __init__(self, path: str, config: type | None = None, name: str | None = None):
        self._path = path
        self.__module__, self.__qualname__ = path.split(":")
        self.__name__ = name or self.__qualname__
        if config is not None:
            self.config_class = config

    def _load(self) -> type:
        return load(self._path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._load(), name)

    def __call__(self, *args, **kwargs) -> Any:
        return self._load()(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<class '{self._path}', not loaded yet>"


def _announce_config(module: ModuleType, row: Architecture) -> None:
    module.AutoConfig.register(row.model_type, load(row.config), exist_ok=True)


def _announce_heads(module: ModuleType, row: Architecture) -> None:
    config = load(row.config)
    for auto, path in row.heads.items():
        if hasattr(module, auto):  # one of the two modules with Auto classes of models
            getattr(module, auto).register(config, LazyClass(path, config), exist_ok=True)


def _announce_processor(module: ModuleType, row: Architecture) -> None:
    if row.processor:
        path = row.processor
        # as `VlmProcessor` calls it in processor_config.json: several bare names are transformers' own
        name = f"hfvlm.{path.split(':')[1]}" if path.startswith("hfvlm.") else None
        module.AutoProcessor.register(load(row.config), LazyClass(path, name=name), exist_ok=True)


# what to do with each row once the module is there
_AUTO_MODULES = {
    "transformers.models.auto.configuration_auto": _announce_config,
    "transformers.models.auto.modeling_auto": _announce_heads,
    "transformers.models.auto.processing_auto": _announce_processor,
    "hfvlm.auto": _announce_heads,
}


class _AnnounceOnImport(importlib.abc.MetaPathFinder):
    """Lets the Auto modules be found as usual, and announces the architectures to each right after it ran."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _AUTO_MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_announce(module: ModuleType) -> None:
                run(module)
                for row in list(ARCHITECTURES.values()):
                    _AUTO_MODULES[fullname](module, row)

            spec.loader.exec_module = run_and_announce
        return spec


if not any(type(finder).__name__ == _AnnounceOnImport.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _AnnounceOnImport())
