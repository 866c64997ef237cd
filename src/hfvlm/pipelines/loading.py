"""Loading a model that answers: nothing of it may be missing."""

import os
from typing import Any

from safetensors import SafetensorError


def unreadable(name: str | os.PathLike, error: OSError) -> str:
    """What is said of a model that cannot be read."""
    what = "cannot be read" if os.path.isdir(name) else "is no folder here and cannot be had from the Hub"
    return f"model {os.fspath(name)!r} {what}: {error}"


def load_whole(auto: type, name: Any, **options: Any) -> Any:
    """`auto.from_pretrained(name, **options)`, unless weights are missing from what is there.

    transformers fills those with random numbers and only warns, so that, say, a classifier's folder would answer as a
    two-tower model, otherwise each time.

    Raises:
        ValueError: weights are missing, says which; their file is damaged.
    """
    try:
        model, found = auto.from_pretrained(name, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"{name}: its weights (*.safetensors) are damaged or not complete: {error}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        saved = " or ".join(getattr(model.config, "architectures", None) or ["something else"])
        parts = ", ".join(dict.fromkeys(key.split(".")[0] for key in missing))
        raise ValueError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} (in {parts}): it holds the weights of "
            f"{saved}. Name a folder where all of {type(model).__name__} was saved"
        )
    return model
