"""`hfvlm` itself: help without torch, versions, errors of one line."""

import subprocess
import sys

import pytest

from hfvlm import __version__
from hfvlm.cli import info


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        [],
        *(
            [name, "--help"]
            for name in ("ask", "bootstrap", "caption", "embed", "evaluate", "match", "search", "train")
        ),
        ["caption", "missing.jpg"],
    ],
)
def test_answers_without_torch_and_transformers(arguments):
    code = (
        "import atexit, sys; from hfvlm.cli import main;"
        "heavy = lambda: [name for name in ('torch', 'transformers') if name in sys.modules];"
        "atexit.register(lambda: print('heavy:', heavy()));"
        f"main({arguments!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("heavy: []\n"), result.stderr
    if "missing.jpg" not in arguments:
        assert result.returncode == 0
        assert "Usage:" in result.stdout


def test_entry_point():
    from importlib.metadata import entry_points

    [command] = entry_points(group="console_scripts", name="hfvlm")
    assert command.value == "hfvlm.cli:main"


def test_help_lists_the_commands(run):
    for arguments in (["--help"], ["-h"], []):
        result = run(*arguments)
        assert result.code == 0
        assert "caption" in result.out
        assert "info" in result.out


def test_version(run):
    assert run("--version").out == f"hfvlm {__version__}\n"


@pytest.mark.parametrize("arguments", [["captoin", "a.jpg"], ["caption"], ["caption", "a.jpg", "--beem", "3"]])
def test_wrong_calls(run, arguments):
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


def test_unexpected_error_is_one_line_with_a_hint(run, monkeypatch):
    def broken(name):
        raise KeyError("a\nb")

    monkeypatch.setattr(info, "find", broken)
    result = run("info", "blip")
    assert result.code == 1
    assert result.err == "error: KeyError: 'a\\nb' (hfvlm --debug ... shows where)\n"


def test_debug_shows_the_traceback(monkeypatch):
    from hfvlm.cli import main

    with pytest.raises(ValueError, match="unknown architecture"):
        main(["--debug", "info", "blib"])
    monkeypatch.setenv("HFVLM_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown architecture"):
        main(["info", "blib"])


def test_interrupt(run, monkeypatch):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "find", interrupt)
    assert run("info", "blip").code == 130
