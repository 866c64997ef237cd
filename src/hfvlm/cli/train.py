"""`hfvlm train`: a model by a recipe."""

import json
import warnings
from typing import Annotated

import typer

from hfvlm.cli.console import print_error, print_line, stderr


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="What is trained, on what, and how.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="In place of the recipe's, e.g. training.learning_rate=1e-5."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder for checkpoints and the model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the output's last checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Train a model by a recipe (examples/recipes); mistakes in it are found before training starts."""
    overrides = {}
    for change in changes or []:
        key, sign, value = change.partition("=")
        if not sign or not key.strip():
            raise typer.BadParameter(f"{change!r} must be KEY=VALUE", param_hint="--set")
        overrides[key.strip()] = value
    if output is not None:
        overrides["output"] = json.dumps(output)
    from hfvlm.training.mistakes import RecipeError
    from hfvlm.training.recipe import read_recipe

    try:
        read = read_recipe(recipe, overrides)  # before anything else takes time
        warnings.simplefilter("ignore")  # they speak to programmers
        from transformers.utils import logging

        from hfvlm.training.plan import prepare

        logging.set_verbosity_error()
        if not stderr().is_terminal:
            logging.disable_progress_bar()
        plan = prepare(read, resume)
    except RecipeError as error:
        for mistake in error.mistakes:
            print_error(mistake)
        raise typer.Exit(1) from error
    # of several processes one speaks
    say = print_line if plan.arguments.process_index == 0 else lambda line: None
    for line in plan.lines():
        say(line)
    if not dry_run:
        say(f"saved {plan.train(say)}")
