"""Where commands write: results to stdout, everything else to stderr."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


def stderr() -> Console:
    """The console for errors and progress."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for results; what is not a terminal has room for whole tables."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=200)


def print_error(message: str, console: Console | None = None) -> None:
    """One line on stderr, red on a terminal."""
    line = Text(f"error: {' '.join(message.split())}", style="red")
    (console or stderr()).print(line, soft_wrap=True)


def print_line(text: str) -> None:
    """A line of results, out at once, as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def progress_bar(label: str, console: Console) -> Progress:
    """A bar that is shown only on a terminal, and leaves nothing behind."""
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send what is written to stdout through the bar's console, which is stderr
    return Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_interactive,
    )


class Report:
    """Errors and (on a terminal) a progress bar on stderr, while results go to stdout.

    Args:
        label: what the bar says.
    """

    def __init__(self, label: str):
        self.failed = False
        self.count = "none"  # how many are done, in words
        self._console = stderr()
        self.bar = progress_bar(label, self._console)
        self._task = self.bar.add_task("", total=None)

    def error(self, message: str) -> None:
        """Tells of something that is left out; the command will exit with 1."""
        self.failed = True
        print_error(message, self._console)

    def progress(self, done: int, total: int) -> None:
        """Moves the bar."""
        self.count = f"{done} of {total}"
        self.bar.update(self._task, completed=done, total=total)
