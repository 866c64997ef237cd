"""`hfvlm bootstrap`: texts of web images made clean and more, by a captioner and a filter (CapFilt)."""

import functools
import json
import os
import warnings
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hfvlm.cli.console import Report, print_line, stderr
from hfvlm.cli.loading import Dtype, Precision, TrustRemoteCode, check_model_name, choose_device


class Engine(str, Enum):
    """Values of --engine."""

    local = "local"
    ray = "ray"


def _load(source: Path, folder: Path, captioner: str, judge: str, dtype: str, trust: bool, recipe: Any) -> tuple:
    """The rows, the folder of shards and the models of a round; also called by the workers of Ray."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from hfvlm.auto import AutoModelForImageTextRetrieval
    from hfvlm.data.bootstrap import CapFilt
    from hfvlm.data.shards import ShardFolder
    from hfvlm.data.web import open_rows
    from hfvlm.pipelines.loading import load_whole, unreadable

    device, precision = choose_device(dtype)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    parts: list[Any] = []
    for auto, name in ((AutoModelForImageTextToText, captioner), (AutoModelForImageTextRetrieval, judge)):
        try:
            model = load_whole(auto, name, dtype=precision, trust_remote_code=trust).to(device)
        except OSError as error:
            raise ValueError(unreadable(name, error)) from error
        parts += [model, AutoProcessor.from_pretrained(name, trust_remote_code=trust)]
    rows, capfilt = open_rows(source), CapFilt(*parts, recipe)
    return rows, ShardFolder(folder, capfilt.settings(rows), rows.in_bytes), capfilt


def _say(said: dict[str, Any]) -> None:
    texts = [f"{said[f'{source}_kept']} of {said[source]} {source} texts" for source in ("web", "synthetic")]
    images = f"{said['images']} images ({said['skipped']} skipped)"
    print_line(f"{said['output']}: {said['shards']} shards, {images}; kept {' and '.join(texts)}")


def bootstrap(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help='Images with noisy texts: .jsonl or .parquet with "image", and "text" or "captions"; a folder of '
            "parquet files, or of datasets.",
        ),
    ],
    captioner: Annotated[str, typer.Option(help="Folder or Hub name of the model that writes new texts.")],
    judge: Annotated[
        str,
        typer.Option("--filter", help="Folder or Hub name of the retrieval model (BLIP, ALBEF) that judges texts."),
    ],
    output: Annotated[Path, typer.Option(help="Folder; a round's parquet shards go into round-N in it.")],
    round: Annotated[
        int, typer.Option("--round", min=1, help="Which round; a later one takes models trained on the last.")
    ] = 1,
    threshold: Annotated[float, typer.Option(help="Least probability of a match that keeps a text, 0 to 1.")] = 0.5,
    top_p: Annotated[float, typer.Option(help="Nucleus of the sampling, above 0, at most 1.")] = 0.9,
    min_length: Annotated[int, typer.Option(help="Shortest new text, in tokens.")] = 5,
    max_length: Annotated[int, typer.Option(help="Longest new text, in tokens.")] = 20,
    captions: Annotated[int, typer.Option(help="New texts an image.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    shard_size: Annotated[int, typer.Option(help="Rows of the input a shard; what a kill loses at most.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images at a time; the texts that are drawn depend on it, too.")] = 8,
    engine: Annotated[Engine, typer.Option(help="local: this process, or those of torchrun; ray: Ray Data.")] = (
        Engine.local
    ),
    workers: Annotated[int, typer.Option(min=1, help="Workers of --engine ray, each with its own models.")] = 1,
    dtype: Precision = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Say what came of it as one JSON object.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Bootstrap captions (CapFilt): a captioner adds texts to web images, a filter drops those that do not match.

    The parquet shards hold image, text, source ("web" or "synthetic"), score and row. Run again, it goes on where it
    stopped. Under torchrun the processes share the shards. An image that cannot be read is named on stderr and
    skipped; the exit code stays 0, or torchrun would end the other processes.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    from hfvlm.data.web import open_rows

    rows = open_rows(source)  # before anything else takes time
    from hfvlm.data.bootstrap import Recipe
    from hfvlm.data.bootstrap import bootstrap as make
    from hfvlm.data.bootstrap_ray import bootstrap_with_ray, check_ray

    names = ("threshold", "top_p", "min_length", "max_length", "captions", "seed", "round", "shard_size", "batch_size")
    given = locals()
    try:
        recipe = Recipe(**{name: given[name] for name in names})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if engine is Engine.ray:
        try:
            check_ray()
        except ImportError as error:
            raise typer.BadParameter(str(error), param_hint="--engine") from error
    for name in (captioner, judge):
        check_model_name(name)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    shards, folder = range(rank, recipe.shards(len(rows)), world), output / f"round-{round}"
    load = functools.partial(
        _load, source.absolute(), folder.absolute(), captioner, judge, dtype.value, trust_remote_code, recipe
    )
    report = Report("bootstrapping")
    if engine is Engine.ray:
        done = bootstrap_with_ray(
            load, shards, workers, float(choose_device(dtype.value)[0].type == "cuda"), report.error
        )
    else:
        done = make(*load(), shards=shards, on_error=report.error)
    finished, total = 0, None
    try:
        with report.bar:
            report.progress(0, len(shards))
            for finished, (_, counts) in enumerate(done, 1):
                total = counts if total is None else total + counts
                report.progress(finished, len(shards))
    except KeyboardInterrupt:
        stderr().print(f"interrupted: {report.count} shards made; run it again to go on", soft_wrap=True)
        raise
    said = {"output": str(folder), "round": round, "shards": finished, **(asdict(total) if total else {})}
    if as_json:
        print_line(json.dumps(said))
    elif total:
        _say(said)
