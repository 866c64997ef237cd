"""`hfvlm search`: the images in a folder that fit a text, or look like an image."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


if TYPE_CHECKING:
    from hfvlm.embedder import Embedder


def _print(results: list[dict[str, Any]], as_json: bool) -> None:
    console = stdout()
    for rank, row in enumerate(results, 1):
        numbers = {name: row[name] for name in ("score", "similarity") if name in row}
        if as_json:
            rounded = {name: round(value, 6) for name, value in numbers.items()}
            print_line(json.dumps({"rank": rank, **rounded, "image": row["image"]}))
            continue
        score, *others = (f"{value:6.3f}" for value in numbers.values())
        if console.is_terminal:
            plain = "".join(f"  {other}" for other in others)
            console.print(Text.assemble((score, "bold"), plain, "  ", (row["image"], "cyan")), soft_wrap=True)
        else:
            print_line("  ".join([score, *others, row["image"]]))


def _judged(embedder: "Embedder", query: str, paths: list[str]) -> list[dict[str, Any]]:
    """Photos opened again and judged with a text: score, similarity and path, best first."""
    from hfvlm.pipelines.image_text_retrieval import ImageTextRetrievalPipeline

    pipe = ImageTextRetrievalPipeline(embedder.model, embedder.processor, device=embedder.model.device)
    pipe.index(images=paths, batch_size=embedder.batch_size)
    return pipe(query, top_k=len(paths), rerank=len(paths))


def search(
    folder: Annotated[Path, typer.Option("--in", metavar="FOLDER", help="Where the images are.")],
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="What the images should show.")] = None,
    image: Annotated[str | None, typer.Option(help="An image (path or URL) to look for, instead of a text.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many images.")] = 12,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Open the K nearest images again, judge each with the text, and show the best of them: for retrieval "
            "models that judge pairs (ALBEF, BLIP).",
        ),
    ] = None,
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
    """Search a folder for images: score and path, best first; with --rerank judgement, similarity and path.

    The images' embeddings are kept in an index; later searches embed only new and changed files. An image that cannot
    be read is named on stderr and left out, and the exit code is 1.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if (query is None) == (image is None):
        raise typer.BadParameter("give a text, or --image, and not both", param_hint="QUERY")
    if query is not None and not query.strip():
        raise typer.BadParameter("is empty: say what to look for", param_hint="QUERY")
    if rerank is not None and query is None:
        raise typer.BadParameter("judges images with a text: leave it out with --image", param_hint="--rerank")
    if not folder.is_dir():
        raise typer.BadParameter(f"{folder}: no such folder", param_hint="--in")
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.parent.is_dir()):
        raise typer.BadParameter(f"{sheet}: must be a .png in a folder that is there", param_hint="--sheet")
    picture = None if image is None else open_image(image)  # before anything else takes time
    embedder = load_embedder(model, dtype.value, trust_remote_code, batch_size)

    if rerank is not None:
        from hfvlm.reranking import check_judges

        check_judges(embedder.model)
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
    scores, rows = found.search(vector, rerank or top_k, find_faiss())
    paths = [str(folder / found.paths[row]) for row in rows[0].tolist()]
    if rerank is None:
        results = [{"score": score, "image": path} for score, path in zip(scores[0].tolist(), paths, strict=True)]
    else:
        results = _judged(embedder, query, paths)[:top_k]
    _print(results, as_json)
    if sheet is not None:
        from hfvlm.data.sheet import write_sheet

        shown = [(row["score"], row["image"]) for row in results]
        write_sheet(sheet, shown, query or f"like {Path(image).name}", folder=folder)
    raise typer.Exit(int(report.failed))
