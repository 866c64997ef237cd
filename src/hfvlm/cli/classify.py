"""`hfvlm classify`: which of some labels an image shows, without training."""

import json
import warnings
from typing import Annotated

import typer
from rich.text import Text

from hfvlm.cli.console import Report, print_line, stdout
from hfvlm.cli.inputs import find_images
from hfvlm.cli.loading import (
    BATCH_SIZE,
    BUILT_IN,
    AsJson,
    BatchSize,
    Dtype,
    Precision,
    TrustRemoteCode,
    TwoTowerModel,
    load_two_towers,
)


def _print(path: str, scores: dict[str, float], as_json: bool) -> None:
    console = stdout()
    if as_json:
        print_line(json.dumps({"image": path, "scores": {label: round(score, 6) for label, score in scores.items()}}))
        return
    shown = ", ".join(f"{label} {score:.3f}" for label, score in scores.items())
    if console.is_terminal:
        console.print(Text.assemble((path, "bold cyan"), ": ", shown), soft_wrap=True)
    else:
        print_line(f"{path}: {shown}")


def _templates(names: list[str]) -> list[str]:
    """The templates that are meant: by themselves, or by the name of a known set."""
    from hfvlm.evaluation.zero_shot import TEMPLATES

    for name in names:
        if "{}" not in name and name not in TEMPLATES:
            raise typer.BadParameter(
                f"{name!r} has no {{}} where the label goes, and is none of {', '.join(TEMPLATES)}",
                param_hint="--template",
            )
    return [template for name in names for template in TEMPLATES.get(name, (name,))]


def classify(
    paths: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images, folders, quoted glob patterns, or URLs.")
    ],
    labels: Annotated[
        list[str], typer.Option(metavar="A,B,...", help="What there is to choose from; it can be repeated.")
    ],
    model: TwoTowerModel = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt with {} for the label, or a set: photo, ensemble, satellite, pet, food. Repeat it to take "
            "the mean of several."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels an image.")] = 5,
    batch_size: BatchSize = BATCH_SIZE,
    dtype: Precision = Dtype.auto,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Classify images by names of labels alone: the most probable ones, a line an image.

    An image that cannot be read is named on stderr and skipped, and the exit code is 1.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    found, problems = find_images(paths)
    if not found:
        raise typer.BadParameter("; ".join(problems), param_hint="IMAGE")
    from hfvlm.evaluation.zero_shot import ZeroShotClassifier, check_labels

    try:
        names = check_labels(",".join(labels).split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--labels") from error
    templates = _templates(template or ["photo"])
    report = Report("classifying")
    for problem in problems:
        report.error(problem)
    try:
        classifier = ZeroShotClassifier(
            *load_two_towers(model, dtype.value, trust_remote_code), names, templates, batch_size
        )
    except TypeError as error:
        raise ValueError(f"--model {model or BUILT_IN}: {error}") from error
    with report.bar:
        for positions, scores in classifier.stream(found, lambda position, error: report.error(str(error))):
            best, order = scores.topk(min(top_k, len(names)))
            for position, values, numbers in zip(positions, best.tolist(), order.tolist(), strict=True):
                _print(found[position], {names[n]: value for n, value in zip(numbers, values)}, as_json)
            report.progress(positions[-1] + 1, len(found))
    raise typer.Exit(int(report.failed))
