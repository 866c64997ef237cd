"""The model and the processor that a recipe names: their configuration is checked first, then weights are loaded."""

import dataclasses
import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, PreTrainedModel

from hfvlm.encoders.configuration import BertTowerConfig
from hfvlm.losses.matches import UNKNOWN
from hfvlm.losses.queue import NegativeQueue
from hfvlm.nn.embedding import resize_positions
from hfvlm.registry import ARCHITECTURES, Architecture, auto_class, find, load
from hfvlm.training.mistakes import Mistakes, kind, nearest
from hfvlm.training.recipe import Recipe
from hfvlm.training.tasks import TASKS, Task


def check_name(name: str, where: str, mistakes: Mistakes) -> bool:
    """Whether a name can be a folder with a model or one on the Hub; a path that leads nowhere is a mistake."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return True
    if folder.exists():
        mistakes.add(where, f"{name} is a file, not a folder")
    elif folder.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1:
        mistakes.add(where, f"{name}: no such folder")
    else:
        return True
    return False


def _why_not(name: str | None, error: Exception) -> str:
    """Why nothing could be read: of a name that is no folder, that first."""
    if name is None or Path(name).expanduser().is_dir():
        return str(error)
    return f"there is no folder {name} here, and it cannot be had as a name on the Hub: {error}"


def learns(row: Architecture, task: Task) -> bool:
    """Whether an architecture has a head for the task."""
    path = row.heads.get(task.auto)
    return path is not None and set(task.reads) <= inspect.signature(load(path).forward).parameters.keys()


def build_config(recipe: Recipe, task: Task, mistakes: Mistakes) -> tuple[PreTrainedConfig, PreTrainedConfig] | None:
    """The configuration as the recipe wants it, and as the weights have it that are loaded; None after a mistake."""
    spec, overrides = recipe.model, recipe.model.get("config", {})
    before = len(mistakes.found)
    try:
        if "from" in spec:
            if not check_name(spec["from"], "model.from", mistakes):
                return None
            saved = AutoConfig.from_pretrained(spec["from"])
            if saved.model_type not in ARCHITECTURES:
                known = ", ".join(row.name for row in ARCHITECTURES.values())
                mistakes.add("model.from", f"{spec['from']} is a {saved.model_type}, none of {known}")
                return None
        else:
            cls = load(find(spec["architecture"]).config)
            sizes = load(f"{cls.__module__}:VARIANTS")
            if "variant" in spec and spec["variant"] not in sizes:
                mistakes.add(
                    "model.variant", f"unknown variant {spec['variant']!r}; {nearest(spec['variant'], sizes)}"
                )
                return None
            saved = cls.variant(spec["variant"]) if "variant" in spec else cls()
    except (ValueError, OSError, TypeError, StrictDataclassError) as error:
        mistakes.add("model.from" if "from" in spec else "model.architecture", _why_not(spec.get("from"), error))
        return None
    row = find(saved.model_type)
    if not learns(row, task):
        others = [one.title for one in ARCHITECTURES.values() if learns(one, task)]
        mine = [name for name, one in TASKS.items() if learns(row, one)]
        mistakes.add(
            "task",
            f"{row.title} has no head for {recipe.task}; it learns {', '.join(mine) or 'no task of recipes'}, and "
            f"{recipe.task} is learned by {', '.join(others)}",
        )
    _check_fields(overrides, saved, "model.config", mistakes)
    if len(mistakes.found) > before:
        return None
    try:
        wanted = _overridden(saved, overrides) if "from" in spec else _fresh(spec, type(saved))
        wanted.validate()
        if "id2label" in overrides and "label2id" not in overrides:
            wanted.label2id = {name: number for number, name in wanted.id2label.items()}
    except (ValueError, TypeError, StrictDataclassError) as error:
        mistakes.add("model.config", str(error.__cause__ or error))
        return None
    return wanted, saved


def _fresh(spec: dict[str, Any], cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A new configuration: fields that follow from others follow from those that the recipe says."""
    size = cls.variant(spec["variant"]) if "variant" in spec else cls()
    fields = size.to_dict()
    overrides = _as_floats(spec.get("config", {}), fields)
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            overrides[name] = _as_floats(value, fields[name])
    return cls.variant(spec["variant"], **overrides) if "variant" in spec else cls(**overrides)


def _check_fields(overrides: dict[str, Any], config: PreTrainedConfig, where: str, mistakes: Mistakes) -> None:
    """Whether the config has the fields: it would take any, and ignore those that it does not know."""
    known = {field.name for field in dataclasses.fields(config)} | {"num_labels"}
    own = sorted(known - {field.name for field in dataclasses.fields(PreTrainedConfig)})
    for name, value in overrides.items():
        if name not in known:
            mistakes.add(f"{where}.{name}", f"is no field of {type(config).__name__}; {nearest(name, own)}")
        elif isinstance(getattr(config, name, None), PreTrainedConfig):
            if not isinstance(value, dict):
                mistakes.add(f"{where}.{name}", f"must be a mapping of fields, got {value!r} ({kind(value)})")
            elif "model_type" not in value:
                _check_fields(value, getattr(config, name), f"{where}.{name}", mistakes)


def _overridden(config: PreTrainedConfig, overrides: dict[str, Any]) -> PreTrainedConfig:
    """A copy of a config with fields overridden, checked as a new one is."""
    fields = config.to_dict()
    if overrides.keys() & {"num_labels", "id2label"}:  # the names of classes follow from the one or the other
        fields = {name: value for name, value in fields.items() if name not in ("id2label", "label2id")}
    for name, value in overrides.items():
        part = fields.get(name)
        same = isinstance(value, dict) and isinstance(part, dict) and "model_type" not in value
        fields[name] = {**part, **_as_floats(value, part)} if same else _as_floats({name: value}, fields)[name]
    return type(config).from_dict(fields)


def _as_floats(overrides: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Whole numbers as the fields have them: `alpha: 1` means 1.0."""
    return {
        name: float(value) if type(value) is int and isinstance(fields.get(name), float) else value
        for name, value in overrides.items()
    }


def no_teacher(recipe: Recipe) -> tuple[str, str]:
    """The mistake of a recipe that sets the say of a teacher that there is not."""
    where = "alpha" if recipe.alpha is not None else "alpha_ramp"
    return where, f"is a momentum teacher's say, and this model has none for {recipe.task}: leave it out"


def set_alpha(config: PreTrainedConfig, recipe: Recipe, epoch_steps: int, mistakes: Mistakes) -> None:
    """Writes the recipe's alpha and its ramp into the config.

    Args:
        epoch_steps: training steps of an epoch.
    """
    if recipe.alpha is None and recipe.alpha_ramp is None:
        return
    if not hasattr(config, "alpha"):
        mistakes.add(*no_teacher(recipe))
        return
    if recipe.alpha is not None:
        config.alpha = float(recipe.alpha)
    if recipe.alpha_ramp is not None:
        config.alpha_steps = round(recipe.alpha_ramp * epoch_steps)


def load_processor(recipe: Recipe, config: PreTrainedConfig, resized: bool, mistakes: Mistakes) -> Any | None:
    """The processor, checked against the model's configuration; None after a mistake.

    Args:
        resized: the recipe sets the size of images, also the processor's.
    """
    name = recipe.processor or recipe.model["from"]
    where = "processor" if recipe.processor else "model.from"
    if not check_name(name, where, mistakes):
        return None
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (ValueError, OSError, TypeError) as error:
        there = Path(name).expanduser().is_dir()
        mistakes.add(where, f"{name} holds no processor that can be read: {error}" if there else _why_not(name, error))
        return None
    before = len(mistakes.found)
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    words, room = len(processor.tokenizer), getattr(text, "vocab_size", None)
    if room is not None and words > room:
        mistakes.add(where, f"{name} has {words} words, the model has {room}: model.config.text_config.vocab_size")
    positions = getattr(text, "max_position_embeddings", None)
    if recipe.max_length is not None and positions is not None and recipe.max_length > positions:
        mistakes.add("max_length", f"must be at most the {positions} positions of the model, got {recipe.max_length}")
    if isinstance(text, BertTowerConfig):
        _check_special(processor.tokenizer, config, mistakes)
    size = getattr(vision, "image_size", None)
    if resized and size is not None:
        processor.image_processor.size = {"height": size, "width": size}
    return processor if len(mistakes.found) == before else None


def _check_special(tokenizer: Any, config: PreTrainedConfig, mistakes: Mistakes) -> None:
    """Whether model and tokenizer mean the same words by the ids that have a meaning."""
    text, vocabulary = config.text_config, tokenizer.get_vocab()
    means = {
        "text_config.pad_token_id": (text.pad_token_id, [tokenizer.pad_token]),
        "text_config.bos_token_id": (text.bos_token_id, [tokenizer.bos_token, tokenizer.cls_token]),
        "text_config.eos_token_id": (text.eos_token_id, [tokenizer.sep_token]),
        "mask_token_id": (getattr(config, "mask_token_id", None), [tokenizer.mask_token]),
        "enc_token_id": (getattr(config, "enc_token_id", None), ["[ENC]"]),
    }
    for field, (value, words) in means.items():
        ids = {word: vocabulary[word] for word in words if word in vocabulary}
        if value is not None and ids and value not in ids.values():
            theirs = " and ".join(f"{word} is {i}" for word, i in ids.items())
            mistakes.add(f"model.config.{field}", f"is {value}, but in the processor {theirs}")


def build_model(
    recipe: Recipe, task: Task, config: PreTrainedConfig, saved: PreTrainedConfig
) -> tuple[Any, list[str], list[str]]:
    """The model in fp32, and in words what of it starts fresh, and what as a copy of other parts.

    Raises:
        ValueError, OSError: the weights cannot be loaded.
    """
    auto = auto_class(task.auto)
    if "from" not in recipe.model:
        return auto.from_config(config, dtype=torch.float32), ["all of it"], []
    sizes = [getattr(getattr(one, "vision_config", None), "image_size", None) for one in (config, saved)]
    queues = [getattr(one, "queue_size", None) for one in (config, saved)]
    first = config if sizes[0] == sizes[1] else _overridden(config, {"vision_config": {"image_size": sizes[1]}})
    first = first if queues[0] == queues[1] else _overridden(first, {"queue_size": queues[1]})
    model, found = auto.from_pretrained(
        recipe.model["from"], config=first, dtype=torch.float32, output_loading_info=True
    )
    begin_again(model)
    missing = {name: _is_copy(name) for name in found["missing_keys"]}
    fresh, copied = (_counts([name for name, copy in missing.items() if copy is wanted]) for wanted in (False, True))
    if queues[0] != queues[1]:
        fresh = [part for part in fresh if not part.endswith("_queue")]
        fresh += [f"{name} of {queues[0]} features" for name in _new_queues(model, queues[0])]
    return (model if sizes[0] == sizes[1] else _resized(model, config)), fresh, copied


def _is_copy(name: str) -> bool:
    """Whether a weight that is not loaded starts as a copy: those of teachers and of twins for second images do."""
    return (
        name.startswith("teacher_")
        and name != "teacher_step"
        or any(part.startswith("second_") for part in name.split("."))
    )


def _counts(names: list[str]) -> list[str]:
    """How many weights of each part there are, in words."""
    parts = Counter(name.split(".")[0] for name in names)
    return [f"{count} {'weight' if count == 1 else 'weights'} of {part}" for part, count in sorted(parts.items())]


@torch.no_grad()
def begin_again(model: PreTrainedModel) -> None:
    """Forgets where another training was: the teacher's ramp, and what images of other data the queue holds."""
    for name, buffer in model.named_buffers():
        if name == "teacher_step":
            buffer.zero_()
        elif name == "image_queue.ids":
            buffer.fill_(UNKNOWN)


def _new_queues(model: PreTrainedModel, size: int) -> list[str]:
    """Puts empty queues of another size in the place of the model's; returns their names."""
    queues = {name: one for name, one in model.named_children() if isinstance(one, NegativeQueue)}
    for name, old in queues.items():
        setattr(model, name, NegativeQueue(size, old.features.shape[1], with_ids=old.ids is not None))
    model.config.queue_size = size
    return list(queues)


@torch.no_grad()
def _resized(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The model for images of another size: its learned positions are interpolated."""
    new = type(model)(config)
    state, vision = model.state_dict(), config.vision_config
    for name, tensor in new.state_dict().items():
        if name.endswith("position_embedding") and state[name].shape != tensor.shape:
            grid = (vision.grid_size, vision.grid_size)
            state[name] = resize_positions(state[name], grid, int(vision.class_token), vision.interpolation)
    new.load_state_dict(state)
    if model.can_generate():
        new.generation_config = model.generation_config
    return new
