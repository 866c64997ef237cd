"""`hfvlm match`: how well texts describe an image."""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.text import Text

from hfvlm.cli.console import print_line, stdout
from hfvlm.cli.loading import AsJson, Dtype, Precision, TrustRemoteCode, check_model_name, choose_device
from hfvlm.images import open_image


def match(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image: path or URL.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What it may show.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub name of a model that judges pairs (ALBEF, BLIP); the built-in one if left out."
        ),
    ] = None,
    map: Annotated[
        Path | None, typer.Option(help="Also draw where in the image the best text is (.png); red is most.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="The text tower's layer that --map shows; left out: two thirds up.")
    ] = None,
    dtype: Precision = Dtype.auto,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Judge texts with an image: the probability that each describes it, and their similarity, best first."""
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if not all(text.strip() for text in texts):
        raise typer.BadParameter("is empty: say what the image may show", param_hint="TEXT")
    if map is not None and (map.suffix.lower() != ".png" or not map.parent.is_dir()):
        raise typer.BadParameter(f"{map}: must be a .png in a folder that is there", param_hint="--map")
    if layer is not None and map is None:
        raise typer.BadParameter("needs --map, which it is for", param_hint="--layer")
    picture = open_image(image)  # before anything else takes time
    check_model_name(model)
    from hfvlm.pipelines import pipeline

    device, precision = choose_device(dtype.value)
    pipe = pipeline("image-text-matching", model, device=device, dtype=precision, trust_remote_code=trust_remote_code)
    rows = sorted(pipe(picture, text=texts), key=lambda row: -row["score"])
    if map is not None:
        _draw(map, picture, rows[0]["text"], pipe, layer)
    console = stdout()
    for row in rows:
        if as_json:
            print_line(json.dumps({"image": image, **row}))
        elif console.is_terminal:
            score = (f"{row['score']:.3f}", "bold")
            console.print(Text.assemble(score, f"  {row['similarity']:6.3f}  ", row["text"]), soft_wrap=True)
        else:
            print_line(f"{row['score']:.3f}  {row['similarity']:6.3f}  {row['text']}")


def _draw(path: Path, picture: Image.Image, text: str, pipe: Any, layer: int | None) -> None:
    """Writes the picture with a map of the text over it."""
    from hfvlm.data.files import replacing
    from hfvlm.grounding import draw_map, ground
    from hfvlm.processing import reading_options

    inputs = pipe.processor(images=[picture], text=[text], **reading_options(pipe.processor))
    inputs = {name: value.to(pipe.device) for name, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(pipe.model.dtype)
    drawn = draw_map(picture, ground(pipe.model, layer=layer, **inputs).text[0])
    with replacing(path) as new:
        drawn.save(new)
