"""`hfvlm embed`: vectors of images and texts, in one file with what each is of."""

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from hfvlm.cli.console import Report, print_line
from hfvlm.cli.inputs import find_images
from hfvlm.cli.loading import (
    BATCH_SIZE,
    BUILT_IN,
    BatchSize,
    Dtype,
    Precision,
    TrustRemoteCode,
    TwoTowerModel,
    load_embedder,
)


def embed(
    output: Annotated[Path, typer.Option(help="The file to write: .safetensors or .parquet.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Images, folders, quoted glob patterns, or URLs.")
    ] = None,
    model: TwoTowerModel = None,
    texts: Annotated[
        Path | None, typer.Option(help='Texts: .txt, a line each, or .jsonl, strings or {"text": ..., "id": ...}.')
    ] = None,
    batch_size: BatchSize = BATCH_SIZE,
    dtype: Precision = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was written as one JSON object.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Embed images and texts: vectors of length 1 whose products are similarities.

    An image that cannot be read is named on stderr and left out, and the exit code is 1.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if not paths and texts is None:
        raise typer.BadParameter("give images, --texts, or both: there is nothing to embed", param_hint="PATH")
    found, problems = find_images(paths or [])
    if paths and not found:
        raise typer.BadParameter("; ".join(problems), param_hint="PATH")

    from hfvlm.data.embed import Embeddings, check_output, read_texts, write_embeddings

    try:
        check_output(output)
    except (ValueError, ImportError) as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    ids, lines = read_texts(texts) if texts is not None else ([], [])
    report = Report("embedding")
    for problem in problems:
        report.error(problem)
    embedder = load_embedder(model, dtype.value, trust_remote_code, batch_size)
    image_side, text_side, total = Embeddings(), Embeddings(), len(found) + len(lines)
    with report.bar:
        report.progress(0, total)
        for positions, vectors in embedder.image_batches(found, lambda position, error: report.error(str(error))):
            image_side.ids += [found[position] for position in positions]
            image_side.vectors.append(vectors)
            report.progress(positions[-1] + 1, total)
        for positions, vectors in embedder.text_batches(lines):
            text_side.ids += [ids[position] for position in positions]
            text_side.vectors.append(vectors)
            report.progress(len(found) + positions[-1] + 1, total)
    if not image_side.ids and not text_side.ids:
        raise typer.Exit(1)
    write_embeddings(output, image_side, text_side, {"model": model or BUILT_IN})
    size = (image_side.vectors or text_side.vectors)[0].shape[1]
    said = {"output": str(output), "images": len(image_side.ids), "texts": len(text_side.ids), "dim": size}
    if as_json:
        print_line(json.dumps(said))
    else:
        print_line(f"{output}: {said['images']} images, {said['texts']} texts, {size} numbers each")
    raise typer.Exit(int(report.failed))
