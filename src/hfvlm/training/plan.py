"""From a recipe to a run: everything is checked and built first, then trained by the stock `Trainer`."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, set_seed

from hfvlm.data.files import replacing
from hfvlm.data.questions import count_unlearnable
from hfvlm.training.arguments import FIELDS, build_arguments
from hfvlm.training.mistakes import Mistakes, nearest
from hfvlm.training.model import build_config, build_model, load_processor, no_teacher, set_alpha
from hfvlm.training.recipe import RAND_AUGMENT, Recipe
from hfvlm.training.rows import Rows, read_rows
from hfvlm.training.tasks import TASKS, Task
from hfvlm.training.trainer import EpochOf, PartsTrainer, ShowSamples


#: names of classes that a hint lists
SHOWN = 20
#: what a run may change when it is resumed
CHANGEABLE = {"training", "samples", "output"}
#: what of `training` it may not: the optimiser goes on with what was saved of it
OPTIMISER = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass
class Plan:
    """A run that is ready to start.

    Args:
        fresh, copied: what of the model starts with random weights, and what as a copy of other parts, in words.
        epoch_steps: training steps of an epoch.
        checkpoint: what is resumed; None: nothing.
        unlearnable: rows to train on without an answer that can be learned.
    """

    recipe: Recipe
    task: Task
    model: Any
    processor: Any
    arguments: TrainingArguments
    train_rows: Rows
    evaluation_rows: Rows | None
    fresh: list[str]
    copied: list[str]
    epoch_steps: int
    checkpoint: Path | None
    unlearnable: int = 0

    def lines(self) -> list[str]:
        """What will be done, in words."""
        arguments, recipe = self.arguments, self.recipe
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        origin = recipe.model.get("from") or recipe.model["architecture"]
        starts = (("fresh", self.fresh), ("as a copy", self.copied))
        begins = "".join(f"; starts {how}: {', '.join(parts)}" for how, parts in starts if parts)
        steps = _all_steps(arguments, self.epoch_steps)
        batch = arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
        held = (
            "none" if self.evaluation_rows is None else f"{len(self.evaluation_rows)} rows of {recipe.evaluation.path}"
        )
        lines = [
            f"task        {recipe.task}: {type(self.model).__name__}, {trained:,} trained parameters",
            f"model       {origin}{begins}",
            f"data        {len(self.train_rows)} rows of {recipe.train.path}; evaluation: {held}",
            f"batches     {batch} rows a step, {self.epoch_steps} steps an epoch, {steps} steps in all",
            f"optimiser   {_word(arguments.optim)}, learning rate {arguments.learning_rate:g}, "
            f"{_word(arguments.lr_scheduler_type)}, {arguments.get_warmup_steps(steps)} steps of warm-up",
            f"output      {recipe.output}" + (f", goes on from {self.checkpoint.name}" if self.checkpoint else ""),
        ]
        if self.unlearnable:
            lines.insert(
                3,
                f"answers     {self.unlearnable} of {len(self.train_rows)} rows teach nothing: each of their answers "
                "has a word that the tokenizer does not know",
            )
        if getattr(self.model, "taught_parts", ()) and hasattr(self.model.config, "alpha"):
            config = self.model.config
            ramp = f", from 0 over {config.alpha_steps} steps" if config.alpha_steps else ""
            lines.insert(2, f"teacher     momentum {config.momentum:g}, alpha {config.alpha:g}{ramp}")
        return lines

    def train(self, write: Callable[[str], Any] = print) -> Path:
        """Trains, and saves the model with its processor.

        Args:
            write: takes the lines of sample predictions.

        Returns:
            the folder of the model, `model` in the output; it is there whole, or not at all.
        """
        recipe, output = self.recipe, self.recipe.output
        output.mkdir(parents=True, exist_ok=True)
        if self.arguments.process_index == 0:
            with replacing(output / "recipe.yaml") as name:
                name.write_text(yaml.safe_dump(recipe.raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
        callbacks = [EpochOf(self.train_rows)]
        if recipe.samples and self.evaluation_rows is not None:
            callbacks.append(
                ShowSamples(self.task, self.processor, self.evaluation_rows, recipe.samples, recipe.max_length, write)
            )
        trainer = PartsTrainer(
            model=self.model,
            args=self.arguments,
            train_dataset=self.train_rows,
            eval_dataset=self.evaluation_rows,
            data_collator=self.task.collator(self.processor, recipe.max_length),
            processing_class=self.processor,
            callbacks=callbacks,
        )
        whole = self.checkpoint is not None and _steps_done(self.checkpoint) >= _all_steps(
            self.arguments, self.epoch_steps
        )
        if whole and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            # killed before its model was saved; `train` would take a step more
            trainer._load_from_checkpoint(str(self.checkpoint))
        else:
            trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        return self._save(trainer, output / "model")

    @staticmethod
    def _save(trainer: PartsTrainer, folder: Path) -> Path:
        """Writes beside, and moves into place; every process returns when it is there."""
        new = folder.with_name(".model-new")
        if trainer.is_world_process_zero() and new.exists():  # half a model, left by a kill
            shutil.rmtree(new)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(new))  # all processes take part
        if trainer.is_world_process_zero():
            (new / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says the same
            if folder.exists():
                old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".model-old-"))
                os.replace(folder, old / "model")
                os.replace(new, folder)
                shutil.rmtree(old)
            else:
                os.replace(new, folder)
        trainer.accelerator.wait_for_everyone()
        return folder


def _word(value: Any) -> str:
    return getattr(value, "value", value)


def prepare(recipe: Recipe, resume: bool = False) -> Plan:
    """Checks all that a recipe names, and builds it; writes nothing.

    Args:
        resume: go on from the output's last whole checkpoint.

    Raises:
        RecipeError: mistakes, all that can be found together.
    """
    mistakes = Mistakes()
    task = TASKS.get(recipe.task)
    if task is None:
        mistakes.add("task", f"unknown task {recipe.task!r}; {nearest(recipe.task, TASKS)}")
        mistakes.stop()
    if task.one_text and recipe.captions_per_image != 1:
        mistakes.add("captions_per_image", f"must be 1 for {recipe.task}, got {recipe.captions_per_image}")
    arguments = build_arguments(recipe, mistakes)
    configs = build_config(recipe, task, mistakes)
    processor = None
    if configs is not None:
        resized = "image_size" in recipe.model.get("config", {}).get("vision_config", {})
        processor = load_processor(recipe, configs[0], resized, mistakes)
    seed = 0 if arguments is None else arguments.data_seed if arguments.data_seed is not None else arguments.seed
    texts = recipe.captions_per_image
    rows = read_rows(recipe.train, "data.train", task, mistakes, texts, recipe.augment, seed)
    if recipe.augment == RAND_AUGMENT and rows is not None and processor is not None:
        size = getattr(processor.image_processor, "size", None) or {}
        if "height" in size and size["height"]:
            rows.view_size = (size["width"], size["height"])
        else:
            mistakes.add("augment", f"{RAND_AUGMENT} draws views of one size, and the processor's sizes vary")
    held_out = None
    if recipe.evaluation is not None:
        held_out = read_rows(recipe.evaluation, "data.evaluation", task, mistakes, texts, None, None)
    unlearnable = 0 if rows is None or processor is None else _count_unlearnable(rows, processor, mistakes)
    checkpoint = _check_output(recipe, resume, mistakes)
    epoch_steps = 0
    if configs is not None and arguments is not None and rows is not None:
        epoch_steps = _epoch_steps(len(rows), arguments)
        if checkpoint is not None:
            _check_unfinished(checkpoint, recipe.output, _all_steps(arguments, epoch_steps), mistakes)
        set_alpha(configs[0], recipe, epoch_steps, mistakes)
        _check_queue(configs[0], arguments, recipe, task, mistakes)
        for where, found in (("data.train", rows), ("data.evaluation", held_out)):
            try:
                if found is not None:
                    found.number_classes(configs[0].id2label)
            except ValueError as error:
                mistakes.add(where, f"{error}; {_classes_of(rows, held_out)}")
    mistakes.stop()
    set_seed(arguments.seed)  # of the parts that start fresh
    try:
        model, fresh, copied = build_model(recipe, task, *configs)
    except (ValueError, OSError, RuntimeError) as error:
        mistakes.add("model", str(error))
        mistakes.stop()
    if (recipe.alpha is not None or recipe.alpha_ramp is not None) and not getattr(model, "taught_parts", ()):
        mistakes.add(*no_teacher(recipe))
    _try(task, recipe, model, processor, rows, mistakes)
    mistakes.stop()
    return Plan(
        recipe,
        task,
        model,
        processor,
        arguments,
        rows,
        held_out,
        fresh,
        copied,
        epoch_steps,
        checkpoint,
        unlearnable,
    )


def _count_unlearnable(rows: Rows, processor: Any, mistakes: Mistakes) -> int:
    """Of rows in memory those without an answer that can be learned; it is a mistake if all are."""
    column = next((rows.columns[name] for name in rows.columns if rows.holds[name] == "answers"), None)
    if column is None or not isinstance(rows.table, list):
        return 0
    answers = [[value] if isinstance(value, str) else value for value in rows.values(column)]
    count = count_unlearnable(answers, processor.tokenizer)
    if count == len(rows):
        mistakes.add(
            "data.train",
            f"none of the {count} rows has an answer that can be learned: each has a word that the tokenizer does not "
            f"know, as {answers[0][0]!r} has; write answers as the vocabulary has them (lower case?), or take another "
            "processor",
        )
    return count


def _epoch_steps(rows: int, arguments: TrainingArguments) -> int:
    """Changes of the weights in an epoch, as `Trainer` counts them."""
    share = arguments.train_batch_size * arguments.world_size
    batches = rows // share if arguments.dataloader_drop_last else math.ceil(rows / share)
    return max(1, math.ceil(batches / arguments.gradient_accumulation_steps))


def _all_steps(arguments: TrainingArguments, epoch_steps: int) -> int:
    return arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * epoch_steps)


def _steps_done(checkpoint: Path) -> int:
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")).get("global_step", 0)


def _check_unfinished(checkpoint: Path, output: Path, steps: int, mistakes: Mistakes) -> None:
    """A run that is at its end, and whose model is there, has nothing to go on with."""
    done = _steps_done(checkpoint)
    if done >= steps and (output / "model").exists():
        mistakes.add(
            "output",
            f"{output} holds a run that is already finished, {done} of {steps} steps: raise training.max_steps or "
            "training.num_train_epochs to go on with it",
        )


def _classes_of(*sources: Rows | None) -> str:
    """What to say in a recipe for a model with the classes of the rows, in words."""
    labels = [label for rows in sources if rows is not None for label in rows.labels()]
    numbers = [label for label in labels if type(label) is int]
    if numbers:
        return f"set model.config.num_labels: {max(numbers) + 1}, or name as many classes in model.config.id2label"
    names = sorted({str(label).lower(): str(label) for label in reversed(labels)}.values())
    shown = ", ".join(f"{number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(names[:SHOWN]))
    more = f", ... and so on for all {len(names)}" if len(names) > SHOWN else ""
    return f"set model.config.id2label: {{{shown}{more}}}"


def _check_queue(config: Any, arguments: TrainingArguments, recipe: Recipe, task: Task, mistakes: Mistakes) -> None:
    if (
        getattr(config, "momentum", None) is None
        or not hasattr(config, "queue_size")
        or "return_loss" not in task.reads
    ):
        return
    pairs = arguments.train_batch_size * arguments.world_size * recipe.captions_per_image
    if pairs > config.queue_size:
        mistakes.add(
            "model.config.queue_size",
            f"is {config.queue_size}, and must be at least the {pairs} pairs of a batch: enlarge it, or lower "
            "training.per_device_train_batch_size",
        )


def _is_json(path: Path) -> bool:
    """Whether a file is whole; a kill may have left half of it."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _check_output(recipe: Recipe, resume: bool, mistakes: Mistakes) -> Path | None:
    """The checkpoint to resume."""
    output = recipe.output
    if output.exists() and not output.is_dir():
        mistakes.add("output", f"{output} is a file, not a folder")
        return None
    above = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        mistakes.add("output", f"{output} cannot be written: {above} is no folder that may be written to")
        return None
    whole = sorted(
        (path.parent for path in output.glob("checkpoint-*/trainer_state.json") if _is_json(path)),  # written last
        key=lambda folder: int(folder.name.rpartition("-")[2]),
    )
    if not resume:
        if whole or (output / "model").exists():
            mistakes.add(
                "output", f"{output} holds a run already: pass --resume to go on with it, or another --output"
            )
        return None
    if not whole:
        mistakes.add("output", f"{output} holds no whole checkpoint to resume: start without --resume")
        return None
    before = output / "recipe.yaml"
    if before.is_file():
        was = yaml.safe_load(before.read_text(encoding="utf-8"))
        for name in sorted((was.keys() | recipe.raw.keys()) - CHANGEABLE):
            if was.get(name) != recipe.raw.get(name):
                mistakes.add(name, f"differs from what {output} was started with: a resumed run goes on as it was")
        old, new = ((raw.get("training") or {}) for raw in (was, recipe.raw))
        for name in OPTIMISER:
            values = [said[name] if said.get(name) is not None else FIELDS[name].default for said in (old, new)]
            if values[0] != values[1]:
                mistakes.add(
                    f"training.{name}",
                    f"is {_word(values[1])}, and {output} was started with {_word(values[0])}: a resumed run goes on "
                    "as it was",
                )
    return whole[-1]


def _try(task: Task, recipe: Recipe, model: Any, processor: Any, rows: Rows, mistakes: Mistakes) -> None:
    """Whether the model reads a batch of the first rows."""
    items = [rows[i] for i in range(min(2, len(rows)))]
    training = model.training
    try:
        batch = task.collator(processor, recipe.max_length)(items)
        with torch.no_grad():
            loss = model.eval()(**batch).loss
        if not torch.isfinite(loss):
            mistakes.add("model", f"its loss on the first rows is {loss.item()}")
    except Exception as error:  # whatever does not fit together
        mistakes.add("model", f"cannot read the first rows as the processor gives them: {error}")
    finally:
        model.train(training)
