"""`hfvlm ask`: what a model answers to a question about an image."""

import json
import warnings
from typing import Annotated

import typer
from rich.text import Text

from hfvlm.cli.console import print_line, stdout
from hfvlm.cli.loading import AsJson, Dtype, Precision, TrustRemoteCode, check_model_name, choose_device
from hfvlm.images import open_image


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image: path or URL.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    model: Annotated[str, typer.Option(help="Folder or Hub name of a model that answers questions (ALBEF, BLIP).")],
    candidate: Annotated[
        list[str] | None, typer.Option(help="An answer to choose from, once each; left out, answers are written.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="How many answers to give; left out: one, or all candidates.")
    ] = None,
    dtype: Precision = Dtype.auto,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer a question about an image: the answers with their probabilities, best first."""
    warnings.simplefilter("ignore")  # they speak to programmers; what is wrong with an image becomes an error
    if not question.strip():
        raise typer.BadParameter("is empty: say what to ask about the image", param_hint="QUESTION")
    picture = open_image(image)  # before anything else takes time
    check_model_name(model)
    from hfvlm.pipelines import pipeline

    device, precision = choose_device(dtype.value)
    pipe = pipeline(
        "visual-question-answering", model, device=device, dtype=precision, trust_remote_code=trust_remote_code
    )
    console = stdout()
    for row in pipe(picture, question=question, candidates=candidate or None, top_k=top_k):
        if as_json:
            print_line(json.dumps({"image": image, "question": question, **row}))
        elif console.is_terminal:
            console.print(Text.assemble((f"{row['score']:.3f}", "bold"), f"  {row['answer']}"), soft_wrap=True)
        else:
            print_line(f"{row['score']:.3f}  {row['answer']}")
