"""The models that come with the package."""

from importlib.resources import files
from pathlib import Path


#: task -> folder under assets/
BUILTIN = {
    "image-to-text": "captioner",
    "image-text-retrieval": "searcher",
    "zero-shot-image-classification": "searcher",
}


def builtin_model(task: str) -> Path:
    """The folder of the model that the package brings for a task.

    Raises:
        ValueError: no model comes with the package for this task.
        FileNotFoundError: it should be there, but this installation lacks it.
    """
    if task not in BUILTIN:
        raise ValueError(f"no built-in model for {task!r}, only for {', '.join(BUILTIN)}; name one")
    folder = Path(str(files("hfvlm"))) / "assets" / BUILTIN[task]
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"this installation has no built-in model for {task!r} ({folder} is missing); "
            "install hfvlm again, or name another model"
        )
    return folder
