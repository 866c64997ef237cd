"""`hfvlm search`: the images in a folder that fit a text, or look like an image."""

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hfvlm.cli.console import Report, print_line, stderr, stdout
from hfvlm.cli.loading import (
    BATCH_SIZE,
    BUILT_IN,
    AsJson,
    BatchSize,
    Dtype,
    Precision,
    TrustRemoteCode,
    TwoTowerModel,
    load_embedder,
)
from hfvlm.images import open_image


def _print(results: list[tuple[float, str]], as_json: bool) -> None:
    console = stdout()
    for rank, (score, path) in enumerate(results, 1):
        if as_json:
            print_line(json.dumps({"rank": rank, "score": round(score, 6), "image": path}))
        elif console.is_terminal:
            console.print(Text.assemble((f"{score:6.3f}", "bold"), "  ", (path, "cyan")), soft_wrap=True)
        else:
            print_line(f"{score:6.3f}  {path}")


def search(
    folder: Annotated[Path, typer.Option("--in", metavar="FOLDER", help="Where the images are.")],
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="What the images should show.")] = None,
    image: Annotated[str | None, typer.Option(help="An image (path or URL) to look for, instead of a text.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many images.")] = 12,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the images found on a contact sheet (.png).")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Where the index is kept; FOLDER/.hfvlm/index.safetensors if left out.")
    ] = None,
    model: TwoTowerModel = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index anew.")] = False,
    batch_size: BatchSize = BATCH_SIZE,
    dtype: Precision = Dtype.auto,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Search a folder for images: score and path, best first.

    The images' embeddings are kept in an index; later searches embed only new and changed files. An image that cannot
    be read is named on stderr and left out, and the exit code is 1.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if (query is None) == (image is None):
        raise typer.BadParameter("give a text, or --image, and not both", param_hint="QUERY")
    if query is not None and not query.strip():
        raise typer.BadParameter("is empty: say what to look for", param_hint="QUERY")
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder}: no such folder", param_hint="--in")
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.parent.is_dir()):
        raise typer.BadParameter(f"{sheet}: must be a .png in a folder that is there", param_hint="--sheet")
    picture = None if image is None else open_image(image)  # before anything else takes time
    embedder = load_embedder(model, dtype.value, trust_remote_code, batch_size)

    from hfvlm.data.index import find_faiss
    from hfvlm.data.indexing import update_index

    report = Report("indexing")
    try:
        with report.bar:
            found = update_index(
                folder, embedder, model or BUILT_IN, index, rebuild, on_error=report.error, on_progress=report.progress
            )
    except KeyboardInterrupt:  # what was embedded is kept
        stderr().print(f"interrupted: {report.count} new images indexed; run it again to go on", soft_wrap=True)
        raise
    if not len(found):
        report.error(f"{folder}: no image in this folder")
        raise typer.Exit(1)
    vector = embedder.texts([query]) if picture is None else embedder.images([picture])
    scores, rows = found.search(vector, top_k, find_faiss())
    results = [(score, str(folder / found.paths[row])) for score, row in zip(scores[0].tolist(), rows[0].tolist())]
    _print(results, as_json)
    if sheet is not None:
        from hfvlm.data.sheet import write_sheet

        write_sheet(sheet, results, query or f"like {Path(image).name}", folder=folder)
    raise typer.Exit(int(report.failed))
