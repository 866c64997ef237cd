"""timm's model descriptions as fields of `VitConfig` and as image settings.

Folders of https://github.com/huggingface/pytorch-image-models have them as their `config.json`: the architecture's
name, names of the classes, and under "pretrained_cfg" (in older ones beside the rest) how images are prepared.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import ViTImageProcessorPil


FILE = "config.json"
#: what is meant where a description leaves it out
DEFAULTS = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # as PIL numbers them
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def is_description(config: Mapping[str, Any]) -> bool:
    """Whether a mapping is such a description, not a configuration of transformers or fields of hfvlm's."""
    return "architecture" in config and "model_type" not in config


def beside(folder: Path | None) -> dict[str, Any] | None:
    """The description in the folder of a checkpoint; None if there is none."""
    if folder is None or not (folder / FILE).is_file():
        return None
    config = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return config if is_description(config) else None


def model_fields(description: Mapping[str, Any], classes: int | None) -> dict[str, Any]:
    """Fields of a `VitConfig`: mean and deviation, names of the classes, and of the tower what weights do not tell.

    Args:
        classes: that the weights have; names of another number of classes are not theirs.

    Raises:
        ValueError: an activation that is not known here.
    """
    images, told = _images(description), description.get("model_args") or {}
    tower = {}
    if told.get("act_layer") is not None:
        tower["hidden_act"] = ACTIVATIONS[_one_of("act_layer", told["act_layer"], ACTIVATIONS)]
    elif "quickgelu" in description["architecture"]:
        tower["hidden_act"] = "quick_gelu"
    if told.get("num_heads") is not None:
        tower["num_attention_heads"] = told["num_heads"]
    if description.get("global_pool") == "avg":
        tower["pooling"] = "mean"
    fields = {"image_mean": list(images["mean"]), "image_std": list(images["std"]), "vision_config": tower}
    names = _labels(description)
    if names and len(names) == classes:
        fields.update(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    return fields


def image_processor(description: Mapping[str, Any], side: int) -> ViTImageProcessorPil:
    """The evaluation transform: resized so that `crop_pct` of it is `side` pixels, and the middle of that.

    Raises:
        ValueError: images are prepared in a way that the stock image processor does not know.
    """
    images = _images(description)
    mode = _one_of("crop_mode", images["crop_mode"], ("center", "squash"))
    resized = math.floor(side / images["crop_pct"])
    return ViTImageProcessorPil(
        size={"shortest_edge": resized} if mode == "center" else {"height": resized, "width": resized},
        do_center_crop=True,
        crop_size={"height": side, "width": side},
        resample=RESAMPLING[_one_of("interpolation", images["interpolation"], RESAMPLING)],
        image_mean=list(images["mean"]),
        image_std=list(images["std"]),
    )


def _images(description: Mapping[str, Any]) -> dict[str, Any]:
    stored = description.get("pretrained_cfg", description)
    return {name: default if stored.get(name) is None else stored[name] for name, default in DEFAULTS.items()}


def _labels(description: Mapping[str, Any]) -> list[str]:
    """Names of the classes in their order, the descriptions of those that have one."""
    parts = (description, description.get("pretrained_cfg", {}))
    names = next((part[key] for part in parts for key in ("label_names", "labels") if part.get(key)), [])
    if isinstance(names, Mapping):  # number -> name
        names = [names[number] for number in sorted(names, key=int)]
    known = next((part["label_descriptions"] for part in parts if part.get("label_descriptions")), {})
    return [known.get(name, name) for name in names]


def _one_of(name: str, value: Any, known: Any) -> Any:
    if value not in known:
        raise ValueError(f"timm's {name} is {value!r}; here {', '.join(known)} are known")
    return value
