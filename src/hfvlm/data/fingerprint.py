"""Which model it is: a short hash of what its embeddings depend on."""

import hashlib
import json
from typing import Any

import torch


#: values of each tensor that are hashed, evenly spread
SAMPLES = 4096

#: settings that change no embedding of a trained model: where it lies, how it is run, and how it learns
_NOT_THE_MODEL = {
    "_name_or_path",
    "name_or_path",
    "architectures",
    "auto_map",
    "custom_pipelines",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "gather_features",
    "local_loss",
    "max_logit_scale",
    "micro_batch_size",
    "min_temperature",
    "objective",
    "problem_type",
}
#: the same, by a part of their names: dropout, labels, losses, values to begin with
_NOT_THE_MODEL_WITHIN = ("drop", "freeze", "init", "label", "loss", "momentum")
_PIXELS = ("do_", "size", "crop_size", "pad_size", "resample", "rescale_factor", "image_mean", "image_std")


def fingerprint(model: torch.nn.Module, image_processor: Any) -> str:
    """16 hexadecimal digits that change with the weights, the geometry or the image preprocessing.

    Reading every weight of a large model takes longer than embedding some images. Training changes all of a tensor, so
    evenly spread values tell it as well. They are rounded to bfloat16: the precision that a model happens to be loaded
    in does not make it another one; nor do settings of training, which other weights would tell.

    Args:
        model: a transformers model.
        image_processor: what makes its pixels.
    """
    digest = hashlib.sha256()
    pixels = {name: value for name, value in image_processor.to_dict().items() if name.startswith(_PIXELS)}
    for settings in (_lasting(model.config.to_diff_dict()), pixels):
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().reshape(-1)
        values = values[:: -(-len(values) // SAMPLES) or 1].to("cpu", torch.bfloat16)
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _lasting(settings: Any) -> Any:
    """A configuration without what does not change the numbers it stands for."""
    if not isinstance(settings, dict):
        return settings
    return {
        name: _lasting(value)
        for name, value in settings.items()
        if name not in _NOT_THE_MODEL and not any(part in name for part in _NOT_THE_MODEL_WITHIN)
    }
