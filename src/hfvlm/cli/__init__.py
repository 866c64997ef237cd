"""The `hfvlm` command: one file a subcommand. Importing this imports neither torch nor transformers."""

import os
import sys
from typing import Annotated

import typer

from hfvlm.cli import ask, bootstrap, caption, classify, embed, evaluate, info, match, search, train
from hfvlm.cli.console import print_error
from hfvlm.version import __version__


app = typer.Typer(
    help="Vision-language models: captions and more for your images.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(caption.caption)
app.command()(embed.embed)
app.command()(search.search)
app.command()(classify.classify)
app.command()(evaluate.evaluate)
app.command()(match.match)
app.command()(ask.ask)
app.command()(train.train)
app.command()(bootstrap.bootstrap)
app.command()(info.info)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hfvlm {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.", envvar="HFVLM_DEBUG")] = False,
) -> None:
    context.obj["debug"] = debug
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 all is well, 1 something failed, 2 it was called wrongly, 130 interrupted.

    Args:
        arguments: those of the command line if left out.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    state = {"debug": bool(os.environ.get("HFVLM_DEBUG"))}  # for errors before the options are read
    try:
        code = app(arguments, prog_name="hfvlm", standalone_mode=False, obj=state)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if state["debug"]:
            raise
        # typer's own errors know their wording and exit code
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if not isinstance(error, (ValueError, OSError)) and not hasattr(error, "format_message"):
            message = f"{type(error).__name__}: {message} (hfvlm --debug ... shows where)"
        print_error(message or type(error).__name__)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code or 0)
