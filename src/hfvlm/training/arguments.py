"""`TrainingArguments` from a recipe: their own names, their own types, and defaults that fit these tasks."""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from hfvlm.training.mistakes import Mistakes, expected, fits, kind, nearest
from hfvlm.training.recipe import Recipe


#: fields that a recipe says elsewhere -> where
ELSEWHERE = {"output_dir": "`output`", "resume_from_checkpoint": "`hfvlm train --resume`"}
#: what cannot be otherwise, and why
FIXED = {
    "remove_unused_columns": (False, "the columns are what batches are made of"),
    "dataloader_persistent_workers": (False, "they would not see the epoch change, which views are drawn for"),
}
#: fields that count something of which there must be one
COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
DEFAULTS = {"prediction_loss_only": True, "report_to": "none"}

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def _types(hint: Any) -> set[type]:
    """The plain types that a hint allows; an enumeration is given as text."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return set().union(*(_types(one) for one in typing.get_args(hint)))
    plain = typing.get_origin(hint) or hint
    if isinstance(plain, type) and issubclass(plain, Enum):
        return {str}
    return {plain} if isinstance(plain, type) else set()


def build_arguments(recipe: Recipe, mistakes: Mistakes) -> TrainingArguments | None:
    """The arguments of a run; None where mistakes were found, all of which are added."""
    before = len(mistakes.found)
    hints = typing.get_type_hints(TrainingArguments)
    for name, value in recipe.training.items():
        where = f"training.{name}"
        if name in ELSEWHERE:
            mistakes.add(where, f"is said by {ELSEWHERE[name]}")
        elif name not in FIELDS:
            mistakes.add(where, f"is no field of TrainingArguments; {nearest(name, FIELDS)}")
        elif name in FIXED and value != FIXED[name][0]:
            mistakes.add(where, f"must be {str(FIXED[name][0]).lower()}: {FIXED[name][1]}")
        else:
            known = _types(hints[name]) & {str, int, float, bool, dict, list, type(None)}
            if known and not fits(value, known):
                names = expected(sorted(known, key=lambda one: one.__name__))
                mistakes.add(where, f"must be {names}, got {value!r} ({kind(value)})")
            elif name in COUNTS and value < 1:
                mistakes.add(where, f"must be at least 1, got {value}")
    evaluates = recipe.training.get("eval_strategy", "no")
    if recipe.evaluation is None and evaluates != "no":
        mistakes.add("training.eval_strategy", f"is {evaluates!r}, but data.evaluation is missing")
    if len(mistakes.found) > before:
        return None
    fields = {**DEFAULTS, **recipe.training, **{name: value for name, (value, _) in FIXED.items()}}
    if recipe.evaluation is not None:
        fields.setdefault("eval_strategy", "epoch")
    try:
        return TrainingArguments(output_dir=str(recipe.output), **fields)
    except ImportError as error:
        mistakes.add("training", f"needs accelerate: pip install 'hfvlm[train]' ({error})")
    except Exception as error:  # whatever a field's own check raises
        mistakes.add("training", str(error))
    return None
