"""Recipes: YAML files with a fixed set of keys, checked key by key."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hfvlm.training.mistakes import Mistakes, RecipeError, expected, fits, kind, nearest


@dataclass(frozen=True)
class Key:
    """What may stand at a key.

    Args:
        types: of the value.
        required: it cannot be left out.
        keys: of a mapping, those that it may have; None: any.
        least, most: of a number.
    """

    types: tuple[type, ...]
    required: bool = False
    keys: dict[str, "Key"] | None = None
    least: float = -math.inf
    most: float = math.inf


#: the least share of the area of a random view, where a recipe says `augment: true`
DEFAULT_VIEW = 0.7
#: views that are cropped and then changed, https://arxiv.org/abs/1909.13719
RAND_AUGMENT = "rand_augment"

TEXT, MAPPING = Key((str,)), Key((dict,))
SOURCE = {"path": Key((str,), required=True), "split": TEXT, "columns": MAPPING, "images": TEXT}
RECIPE = Key(
    (dict,),
    keys={
        "task": Key((str,), required=True),
        "model": Key(
            (dict,),
            required=True,
            keys={"from": TEXT, "architecture": TEXT, "variant": TEXT, "config": MAPPING},
        ),
        "processor": TEXT,
        "data": Key(
            (dict,),
            required=True,
            keys={
                "train": Key((str, dict), required=True, keys=SOURCE),
                "evaluation": Key((str, dict), keys=SOURCE),
                "columns": MAPPING,
            },
        ),
        "training": MAPPING,
        "captions_per_image": Key((int,), least=1),
        "alpha": Key((float,), least=0, most=1),
        "alpha_ramp": Key((str, float), least=0),
        "max_length": Key((int,), least=3),
        "augment": Key((bool, float, str), least=0, most=1),
        "samples": Key((int,), least=0),
        "output": Key((str,), required=True),
    },
)


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file or a folder, a split of it, its columns by the names that the task has, and the
    folder that paths of images are relative to (None: that of the file)."""

    path: Path
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    images: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """What a checked recipe says; paths are relative to the folder that the program runs in.

    Args:
        task: what is learned, a key of `TASKS`.
        model: `from` a folder or Hub name, or a fresh `variant` of an `architecture`; `config` overrides fields.
        processor: folder or Hub name; None: the model's.
        training: fields of `TrainingArguments`.
        captions_per_image: how many texts of a row are drawn each time.
        alpha: the teacher's say; None: the config's.
        alpha_ramp: epochs over which alpha grows from 0; None: the config's steps.
        max_length: tokens a text may have; None: as many as the processor allows.
        augment: the least share of an image's area that a random view of it in training shows; "rand_augment": views
            as BLIP's recipes draw them; None: whole images.
        samples: predictions shown at each evaluation.
        raw: all of it as it was read, the overrides within.
    """

    task: str
    model: dict[str, Any]
    train: Source
    output: Path
    evaluation: Source | None = None
    processor: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    captions_per_image: int = 1
    alpha: float | None = None
    alpha_ramp: float | None = None
    max_length: int | None = None
    augment: float | str | None = None
    samples: int = 0
    raw: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """YAML whose `1e-5` is a number and whose `no` is a word, and where a key stands once."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {  # `no` is a word: eval_strategy: no
    key: [(tag, rule) for tag, rule in rules if not tag.endswith(":bool")]
    for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}" if mark else name
        mistakes = Mistakes()
        mistakes.add(place, f"is no YAML that can be read: {getattr(error, 'problem', None) or error}")
        raise RecipeError(mistakes.found) from error


def read_recipe(path: str | Path, overrides: dict[str, str] | None = None) -> Recipe:
    """Reads a recipe and checks its keys and types; nothing is opened that it names.

    Args:
        overrides: dotted key -> value as YAML, in place of what the file says there.

    Raises:
        RecipeError: mistakes, all of them; or the file cannot be read.
    """
    mistakes, text = Mistakes(), ""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        mistakes.add(str(path), "no such file: name a recipe, as examples/recipes has them")
    except (OSError, UnicodeDecodeError) as error:
        mistakes.add(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}")
    mistakes.stop()
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        mistakes.add(str(path), f"must be a mapping of keys (task, model, data, ...), it is {kind(raw)}")
    mistakes.stop()
    for dotted, text in (overrides or {}).items():
        _override(raw, dotted, _parse(text, dotted), mistakes)
    _check(raw, RECIPE, "", mistakes)
    _check_values(raw, mistakes)
    mistakes.stop()
    return _build(raw)


def _override(raw: dict, dotted: str, value: Any, mistakes: Mistakes) -> None:
    *parents, last = dotted.split(".")
    here = raw
    for i, name in enumerate(parents):
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            above = ".".join(parents[: i + 1])
            mistakes.add(dotted, f"cannot be set: {above} is {kind(here)} in the recipe, not a mapping")
            return
    here[last] = value


def _is_training(name: str) -> bool:
    """Whether `training` has the key."""
    from hfvlm.training.arguments import FIELDS  # takes time, and only a recipe with a mistake needs it

    return name in FIELDS


def _check(value: Any, key: Key, where: str, mistakes: Mistakes) -> None:
    """Whether a value and all below it is what the key takes."""
    if not fits(value, key.types):
        mistakes.add(where, f"must be {expected(key.types)}, got {value!r} ({kind(value)})")
        return
    if type(value) in (int, float) and not key.least <= value <= key.most:
        bounds = f"at least {key.least}" if key.most == math.inf else f"between {key.least} and {key.most}"
        mistakes.add(where, f"must be {bounds}, got {value}")
    if not isinstance(value, dict) or key.keys is None:
        return
    prefix = f"{where}." if where else ""
    for name, below in value.items():
        if name not in key.keys:
            hint = f"did you mean training.{name}?" if not where and _is_training(name) else nearest(name, key.keys)
            mistakes.add(f"{prefix}{name}", f"is no key here; {hint}")
        elif below is not None:  # `key:` with nothing behind it is a key left out
            _check(below, key.keys[name], f"{prefix}{name}", mistakes)
    for name, below in key.keys.items():
        if below.required and value.get(name) is None:
            mistakes.add(f"{prefix}{name}", "is missing")


def _mapping(value: Any) -> dict:
    """A mapping without the keys that are left empty; what is no mapping has been told of."""
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else {}


def _check_values(raw: dict, mistakes: Mistakes) -> None:
    """What must hold between keys."""
    model, data = _mapping(raw.get("model")), _mapping(raw.get("data"))
    if isinstance(raw.get("model"), dict) and ("from" in model) == ("architecture" in model):
        mistakes.add("model", "must have `from` (a folder or Hub name) or `architecture` (for a fresh one), not both")
    elif "from" in model and "variant" in model:
        mistakes.add("model.variant", "is for a fresh model; one that is loaded has a size already")
    elif "architecture" in model and not model.keys() & {"variant", "config"}:
        mistakes.add("model.variant", "is missing: name a size of the architecture, or its fields in `config`")
    if "architecture" in model and raw.get("processor") is None:
        mistakes.add("processor", "is missing: a fresh model has none of its own, name a folder that holds one")
    ramp = raw.get("alpha_ramp")
    if isinstance(ramp, str) and ramp != "epoch":
        mistakes.add("alpha_ramp", f"must be `epoch`, or how many epochs, got {ramp!r}")
    view = raw.get("augment")
    if isinstance(view, str) and view != RAND_AUGMENT:
        mistakes.add("augment", f"must be true, false, the least share of the area, or {RAND_AUGMENT}, got {view!r}")
    for place in ("train", "evaluation"):
        _check_columns(_mapping(data.get(place)).get("columns"), f"data.{place}.columns", mistakes)
    _check_columns(data.get("columns"), "data.columns", mistakes)
    if raw.get("samples") and "evaluation" not in data:
        mistakes.add("samples", "are shown at each evaluation: name data.evaluation, too")


def _check_columns(columns: Any, where: str, mistakes: Mistakes) -> None:
    for name, column in _mapping(columns).items():
        if not isinstance(column, str):
            mistakes.add(f"{where}.{name}", f"must be the name of a column, got {column!r} ({kind(column)})")


def _build(raw: dict) -> Recipe:
    common = raw["data"].get("columns") or {}

    def source(given: str | dict | None) -> Source | None:
        if given is None:
            return None
        given = {"path": given} if isinstance(given, str) else given
        columns = {**common, **(given.get("columns") or {})}
        images = Path(given["images"]) if given.get("images") else None
        return Source(Path(given["path"]), given.get("split"), columns, images)

    fields = {name: value for name, value in raw.items() if value is not None and name != "data"}
    fields["model"] = {name: value for name, value in fields["model"].items() if value is not None}
    ramp = fields.get("alpha_ramp")
    fields["alpha_ramp"] = 1.0 if ramp == "epoch" else ramp
    view = raw.get("augment")
    fields["augment"] = DEFAULT_VIEW if view is True else None if view is False else view
    fields["output"] = Path(fields["output"])
    return Recipe(
        train=source(raw["data"]["train"]), evaluation=source(raw["data"].get("evaluation")), raw=raw, **fields
    )
