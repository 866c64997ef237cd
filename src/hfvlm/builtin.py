"""The model that comes with the package: a small BLIP, which captions, searches, classifies and matches."""

from importlib.resources import files
from pathlib import Path


#: what it does
BUILTIN = ("image-to-text", "image-text-retrieval", "image-text-matching", "zero-shot-image-classification")


def builtin_model(task: str) -> Path:
    """The folder of the built-in model, if it has the task.

    Raises:
        ValueError: no model comes with the package for this task.
        FileNotFoundError: it should be there, but this installation lacks it.
    """
    if task not in BUILTIN:
        raise ValueError(f"no built-in model for {task!r}, only for {', '.join(BUILTIN)}; name one")
    folder = Path(str(files("hfvlm"))) / "assets" / "blip"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"this installation has no built-in model for {task!r} ({folder} is missing); "
            "install hfvlm again, or name another model"
        )
    return folder
