"""What is wrong with a recipe: all of it at once, a message each."""

import difflib
from collections.abc import Iterable
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be trained; `mistakes` are the messages."""

    def __init__(self, mistakes: list[str]):
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Mistakes:
    """Collects messages, so that whoever wrote the recipe is told of all of them together."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        """`where` is the key, with dots between the levels; `what` says how it is wrong and what would be right."""
        self.found.append(f"{where}: {' '.join(what.split())}")

    def stop(self) -> None:
        """
        Raises:
            RecipeError: there was something.
        """
        if self.found:
            raise RecipeError(self.found)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the end of a message about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"


_NAMES = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a whole number"}
_NAMES |= {float: "a number", type(None): "nothing"}


def kind(value: Any) -> str:
    """What a value is, in words: of `true`, "true or false"."""
    return _NAMES.get(type(value), type(value).__name__)


def expected(types: Iterable[type]) -> str:
    """What may stand at a key, in words."""
    return " or ".join(_NAMES.get(one, one.__name__) for one in types)


def fits(value: Any, types: Iterable[type]) -> bool:
    """Whether a value is of one of the types; a whole number is a number, true is neither."""
    types = tuple(types)
    return type(value) in types or (type(value) is int and float in types)
