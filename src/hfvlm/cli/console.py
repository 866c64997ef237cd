"""Where commands write: results to stdout, everything else to stderr."""

import sys

from rich.console import Console
from rich.text import Text


def stderr() -> Console:
    """The console for errors and progress."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for results."""
    return Console(highlight=False)


def print_error(message: str, console: Console | None = None) -> None:
    """One line on stderr, red on a terminal."""
    line = Text(f"error: {' '.join(message.split())}", style="red")
    (console or stderr()).print(line, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of results, out at once, as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
