"""`hfvlm evaluate`: how good a model is at a task, on a file of rows with what is right."""

import json
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from hfvlm.cli.console import Report, print_line, stdout
from hfvlm.cli.loading import (
    BATCH_SIZE,
    BUILT_IN,
    BatchSize,
    Dtype,
    Precision,
    TrustRemoteCode,
    check_model_name,
    choose_device,
    load_embedder,
)


class Task(str, Enum):
    """Values of TASK."""

    captioning = "captioning"
    entailment = "entailment"
    reasoning = "reasoning"
    retrieval = "retrieval"
    vqa = "vqa"


#: --split that takes every row
ALL = "all"

#: what a row is called
_ROWS = {
    Task.captioning: "images",
    Task.entailment: "texts",
    Task.reasoning: "statements",
    Task.retrieval: "images",
    Task.vqa: "questions",
}
#: the heads that choose classes
_CLASSIFIERS = {
    Task.entailment: "AutoModelForVisualEntailment",
    Task.reasoning: "AutoModelForVisualReasoning",
}


def _read(task: Task, data: Path, split: str, limit: int | None) -> list[dict[str, Any]]:
    """The rows that are meant, whose images are there."""
    if not data.is_file():
        hint = "" if not data.is_dir() else ", but a folder: name the file in it"
        raise ValueError(f"--data {data}: no such file{hint}")
    from hfvlm.data.captions import read_captions
    from hfvlm.data.judgements import SECOND, read_judgements
    from hfvlm.data.questions import read_questions

    read, options = read_questions if task is Task.vqa else read_captions, {}
    if task in _CLASSIFIERS:
        read, options = read_judgements, {"two_images": task is Task.reasoning}
    rows = read(data, None if split == ALL else split, **options)[:limit]
    images = ("image", SECOND) if task is Task.reasoning else ("image",)
    missing = [row[name] for row in rows for name in images if not row[name].is_file()]
    if missing:
        raise ValueError(f"--data {data}: images of {len(missing)} of {len(rows)} rows are missing, as {missing[0]}")
    return rows


def _pipeline(task: str, model: str | None, dtype: str, trust_remote_code: bool) -> Any:
    check_model_name(model)
    from hfvlm.builtin import BUILTIN, builtin_model
    from hfvlm.pipelines import pipeline

    if model is None and task not in BUILTIN:
        raise typer.BadParameter(f"is needed: there is no built-in model for {task}", param_hint="--model")
    name = str(builtin_model(task)) if model is None else model
    device, precision = choose_device(dtype)
    return pipeline(task, name, device=device, dtype=precision, trust_remote_code=trust_remote_code)


def _classifier(task: Task, model: str | None, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The head that a task is of, without its teacher, and its processor."""
    if model is None:
        raise typer.BadParameter(f"is needed: there is no built-in model for {task.value}", param_hint="--model")
    check_model_name(model)
    from transformers import AutoConfig, AutoProcessor

    from hfvlm.pipelines.loading import load_whole
    from hfvlm.registry import auto_class

    device, precision = choose_device(dtype)
    options = {"trust_remote_code": trust_remote_code}
    if hasattr(AutoConfig.from_pretrained(model, **options), "momentum"):
        options["momentum"] = None
    head = load_whole(auto_class(_CLASSIFIERS[task]), model, dtype=precision, **options).to(device)
    return head, AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)


def evaluate(
    task: Annotated[
        Task,
        typer.Argument(
            metavar="TASK", help="captioning, entailment, reasoning, retrieval or vqa.", show_default=False
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help='Rows, a JSON object a line: {"image", "captions", "split"}; for vqa {"image", "question", '
            '"answer" or "answers", "split"}; for entailment {"image", "text", "label", "split"}, and for reasoning '
            'with an "image_second". Images are relative to the file.'
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Folder or name on the Hub; the built-in model if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help=f"Rows of this split only; {ALL}: every row.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    rerank: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Retrieval: judge the K nearest again, each way (ALBEF, BLIP)."),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(help="VQA: a .txt with an answer a line, to choose from; left out, answers are written."),
    ] = None,
    batch_size: BatchSize = BATCH_SIZE,
    dtype: Precision = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as one JSON object.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score a model: BLEU, ROUGE-L and CIDEr of its captions, recall of retrieval, accuracy of its answers or classes.

    All scores are shares from 0 to 1, but CIDEr, which goes to 10. An image that cannot be read ends the evaluation.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if rerank is not None and task is not Task.retrieval:
        raise typer.BadParameter("is for retrieval", param_hint="--rerank")
    options = {} if rerank is None else {"rerank": rerank}
    if candidates is not None:
        if task is not Task.vqa:
            raise typer.BadParameter("is for vqa", param_hint="--candidates")
        from hfvlm.data.embed import read_texts

        options["candidates"] = list(dict.fromkeys(read_texts(candidates)[1]))
    rows = _read(task, data, split, limit)
    from hfvlm.evaluation import tasks

    tasks.check(task.value, rows)
    report = Report("evaluating")
    options["progress"] = report.progress
    if task is Task.retrieval:
        embedder = load_embedder(model, dtype.value, trust_remote_code, batch_size)
        with report.bar:
            scores = tasks.evaluate_retrieval(embedder, rows, **options)
    elif task in _CLASSIFIERS:
        head, processor = _classifier(task, model, dtype.value, trust_remote_code)
        with report.bar:
            scores = tasks.evaluate_classes(head, processor, rows, batch_size, **options)
    else:
        name = {Task.captioning: "image-to-text", Task.vqa: "visual-question-answering"}[task]
        pipe = _pipeline(name, model, dtype.value, trust_remote_code)
        score = {Task.captioning: tasks.evaluate_captioning, Task.vqa: tasks.evaluate_vqa}[task]
        with report.bar:
            scores = score(pipe, rows, batch_size, **options)
    about = {"task": task.value, "model": model or BUILT_IN, "split": split, _ROWS[task]: len(rows)}
    about |= {} if rerank is None else {"rerank": rerank}
    about |= {} if candidates is None else {"candidates": len(options["candidates"])}
    _print(scores, about, as_json)


def _print(scores: dict[str, float], about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_line(json.dumps({**about, **{name: round(score, 6) for name, score in scores.items()}}))
        return
    console = stdout()
    for name, value in {**about, **{name: f"{score:.4f}" for name, score in scores.items()}}.items():
        if console.is_terminal:
            console.print(Text.assemble((name, "bold cyan"), ": ", str(value)), soft_wrap=True)
        else:
            print_line(f"{name}: {value}")
