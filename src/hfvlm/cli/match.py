"""`hfvlm match`: how well texts describe an image."""

import json
import warnings
from typing import Annotated

import typer
from rich.text import Text

from hfvlm.cli.console import print_line, stdout
from hfvlm.cli.loading import AsJson, Dtype, Precision, TrustRemoteCode, check_model_name, choose_device
from hfvlm.images import open_image


def match(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image: path or URL.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What it may show.")],
    model: Annotated[
        str, typer.Option(help="Folder or Hub name of a retrieval model that judges pairs (ALBEF, BLIP).")
    ],
    dtype: Precision = Dtype.auto,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Judge texts with an image: the probability that each describes it, and their similarity, best first."""
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if not all(text.strip() for text in texts):
        raise typer.BadParameter("is empty: say what the image may show", param_hint="TEXT")
    picture = open_image(image)  # before anything else takes time
    check_model_name(model)
    from hfvlm.pipelines import pipeline

    device, precision = choose_device(dtype.value)
    pipe = pipeline("image-text-matching", model, device=device, dtype=precision, trust_remote_code=trust_remote_code)
    console = stdout()
    for row in sorted(pipe(picture, text=texts), key=lambda row: -row["score"]):
        if as_json:
            print_line(json.dumps({"image": image, **row}))
        elif console.is_terminal:
            score = (f"{row['score']:.3f}", "bold")
            console.print(Text.assemble(score, f"  {row['similarity']:6.3f}  ", row["text"]), soft_wrap=True)
        else:
            print_line(f"{row['score']:.3f}  {row['similarity']:6.3f}  {row['text']}")
