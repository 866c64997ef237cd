"""Scripts written for LAVIS, with one import changed: its names of models, its samples, its results.

```python
>>> from hfvlm import load_model_and_preprocess  # was: from lavis.models import load_model_and_preprocess
>>> model, vis_processors, txt_processors = load_model_and_preprocess("blip_caption", "base_coco", is_eval=True)
>>> model.generate({"image": vis_processors["eval"](photo).unsqueeze(0)})
```

LAVIS: https://github.com/salesforce/LAVIS (BSD-3-Clause).
"""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoProcessor, PreTrainedConfig

from hfvlm.lavis.adapters import LavisModel
from hfvlm.lavis.processors import processors_of
from hfvlm.lavis.table import MODELS, Entry
from hfvlm.pipelines.loading import load_whole
from hfvlm.registry import auto_class, find, load


def load_model(
    name: str,
    model_type: str,
    is_eval: bool = True,
    device: str | torch.device = "cpu",
    checkpoint: str | os.PathLike | None = None,
) -> LavisModel:
    """A model by LAVIS's names, called as LAVIS's is.

    Args:
        name: of the model, e.g. "blip_caption"; a key of `hfvlm.lavis.table.MODELS`.
        model_type: which weights, e.g. "base_coco".
        is_eval: in evaluation mode; LAVIS's own default is training.
        device: where it goes, in float32.
        checkpoint: a folder or Hub name to load instead, as hfvlm's or transformers' own classes save BLIP or CLIP.

    Raises:
        ValueError: unknown names (tells the nearest); weights that are not on the Hub (tells how to convert them), or
            that are of another model.
        OSError: there is no such checkpoint here, and the Hub does not give it.
    """
    entry = _entry(name, model_type)
    head, processor = _load(entry, name, model_type, checkpoint)
    return entry.adapter(head, processor, entry.max_txt_len).train(not is_eval).to(device)


def load_model_and_preprocess(
    name: str,
    model_type: str,
    is_eval: bool = True,
    device: str | torch.device = "cpu",
    checkpoint: str | os.PathLike | None = None,
) -> tuple[LavisModel, dict[str, Any], dict[str, Any]]:
    """As `load_model`, and what prepares one image (`vis_processors`) and one text (`txt_processors`) for the model,
    each a dict of "train" and "eval"."""
    model = load_model(name, model_type, is_eval, device, checkpoint)
    return model, *processors_of(MODELS[name], model.processor)


def _entry(name: str, model_type: str) -> Entry:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, MODELS)}")
    if model_type not in MODELS[name].types:
        raise ValueError(f"{name} has no model_type {model_type!r}{_nearest(model_type, MODELS[name].types)}")
    return MODELS[name]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return (f"; did you mean {near[0]!r}?" if near else ".") + f" Known: {', '.join(known)}"


def _load(entry: Entry, name: str, model_type: str, checkpoint: str | os.PathLike | None) -> tuple[Any, Any]:
    """The head and its processor."""
    source = entry.types[model_type] if checkpoint is None else os.fspath(checkpoint)
    if checkpoint is None and source.startswith("https://"):
        raise ValueError(
            f"{name} {model_type!r} is not on the Hub: download {source}, convert it (python "
            f"conversion/convert_{entry.architecture}.py --checkpoint FILE --vocab FILE --output FOLDER), and pass "
            "checkpoint=FOLDER"
        )
    try:
        fields = PreTrainedConfig.get_config_dict(source)[0]
    except OSError as error:
        raise OSError(f"{source!r} is no folder here and cannot be had from the Hub: {error}") from error
    row, kind = find(entry.architecture), fields.get("model_type")
    if kind == row.model_type:
        head = load_whole(auto_class(entry.auto), source, dtype=torch.float32)
        return head, AutoProcessor.from_pretrained(source)
    if kind != entry.architecture or kind not in _CONVERTERS:
        raise ValueError(f"{name} needs a checkpoint of {row.title}, {source} has model_type {kind!r}")
    head, processor = _converted(source, kind, fields)
    wanted = load(row.heads[entry.auto])
    if not isinstance(head, wanted):
        raise ValueError(f"{name} needs a {wanted.__name__}, {source} is a {type(head).__name__}")
    return head, processor


def _converted(source: str, kind: str, fields: dict[str, Any]) -> tuple[Any, Any]:
    """The head and the processor of what transformers' own class saved."""
    named = fields.get("architectures") or ["nothing"]
    cls = getattr(transformers, named[0], None)
    if cls is None:
        raise ValueError(f"{source} says in config.json that it is of {named[0]}, which transformers does not have")
    theirs = cls.from_pretrained(source, dtype=torch.float32)
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt"]))
    head, processor = _CONVERTERS[kind](theirs, folder)
    if processor is None:
        raise ValueError(f"{source} has no tokenizer: save the model's processor beside it")
    return head, processor


def _from_blip(theirs: Any, folder: Path) -> tuple[Any, Any]:
    from hfvlm.conversion.blip_processor import carried_processor
    from hfvlm.conversion.convert_blip import convert

    head = convert(theirs)
    return head, carried_processor(folder, head.config)


def _from_clip(theirs: Any, folder: Path) -> tuple[Any, Any]:
    from hfvlm.conversion.clip_processor import processor_for
    from hfvlm.conversion.convert_clip import convert

    head = convert(theirs)
    return head, processor_for(head.config, folder)


#: what transformers' own classes save can be read, too: model_type -> how
_CONVERTERS = {"blip": _from_blip, "clip": _from_clip}
