"""`hfvlm caption`: a caption for each image."""

import itertools
import json
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image
from rich.text import Text

from hfvlm.cli.console import print_error, print_line, progress_bar, stderr, stdout
from hfvlm.cli.inputs import find_images
from hfvlm.cli.loading import Dtype, check_model_name, choose_device
from hfvlm.images import ImageError, open_image


if TYPE_CHECKING:
    from transformers import Pipeline


class _Output:
    """Captions on stdout, errors and (on a terminal) a progress bar on stderr, without getting in each other's way."""

    def __init__(self, as_json: bool):
        self.as_json, self.failed = as_json, False
        self.errors, self.results = stderr(), stdout()
        self.progress = progress_bar("captioning", self.errors)
        self.task = self.progress.add_task("")

    def error(self, message: str) -> None:
        self.failed = True
        print_error(message, self.errors)

    def caption(self, path: str, caption: str) -> None:
        shared = self.results.is_terminal and not self.progress.disable
        if shared:  # bar and captions are on one screen
            self.progress.stop()
        if self.as_json:
            print_line(json.dumps({"image": path, "caption": caption}))
        elif self.results.is_terminal:
            self.results.print(Text.assemble((path, "bold cyan"), ": ", caption), soft_wrap=True)
        else:
            print_line(f"{path}: {caption}")
        if shared:
            self.progress.start()
        self.progress.advance(self.task)


def _readable(paths: list[str], output: _Output, opened: deque[str]) -> Iterator[Image.Image]:
    """The images that can be opened, their paths in `opened`; the others are reported."""
    for path in paths:
        try:
            image = open_image(path)
        except ImageError as error:
            output.error(str(error))
            output.progress.advance(output.task)
        else:
            opened.append(path)
            yield image


def _load(model: str | None, dtype: str, trust_remote_code: bool, **options: Any) -> "Pipeline":
    check_model_name(model)
    from hfvlm.pipelines import pipeline

    device, precision = choose_device(dtype)
    return pipeline(
        "image-to-text",
        model,
        device=device,
        dtype=precision,
        trust_remote_code=trust_remote_code,
        **options,
    )


def caption(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, folders, quoted glob patterns, or URLs.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Folder or name on the Hub; the built-in model if left out.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What every caption starts with.")] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Beams to search; the model's own number if left out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest caption, in tokens.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision; auto: bf16 where it is computed natively.")] = Dtype.auto,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> None:
    """Caption images: a line each, as soon as it is known.

    An image that cannot be read is named on stderr and skipped, and the exit code is 1.
    """
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    found, problems = find_images(paths)
    if not found:
        raise typer.BadParameter("; ".join(problems), param_hint="PATH")
    output = _Output(as_json)
    for problem in problems:
        output.error(problem)
    output.progress.update(output.task, total=len(found))
    opened: deque[str] = deque()
    images = _readable(found, output, opened)
    first = next(images, None)  # the model is loaded only for an image that can be read
    if first is not None:
        pipe = _load(model, dtype.value, trust_remote_code, batch_size=batch_size)
        options = {"prompt": prompt, "max_new_tokens": max_new_tokens}
        generate = {} if beams is None else {"num_beams": beams}
        with output.progress:
            for result in pipe(itertools.chain([first], images), generate_kwargs=generate, **options):
                output.caption(opened.popleft(), result[0]["generated_text"])
    raise typer.Exit(int(output.failed))
