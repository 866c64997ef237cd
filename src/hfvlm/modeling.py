"""The base of every hfvlm model: what it supports, freezing by stage, and saving together with its code."""

import os
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging


logger = logging.get_logger(__name__)


class VlmPreTrainedModel(PreTrainedModel):
    """`PreTrainedModel` with the habits of this house: every attention backend, and folders that load anywhere."""

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    #: What trains at each named stage: prefixes of parameter names, as `freeze` takes them.
    trainable_stages: dict[str, tuple[str, ...]] = {"all": ("",)}

    def freeze(self, stage: str) -> None:
        """Leaves only the parameters of one stage trainable.

        Args:
            stage: a key of `trainable_stages`.

        Raises:
            ValueError: for a stage that this model does not declare; names the ones it does.
        """
        if stage not in self.trainable_stages:
            raise ValueError(
                f"{type(self).__name__} has no stage {stage!r}; choose from {', '.join(self.trainable_stages)}"
            )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(self.trainable_stages[stage]))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves config, weights, and the code that loads them where hfvlm is not installed.

        Takes what `PreTrainedModel.save_pretrained` takes.
        """
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            save_code(self, save_directory)


def save_code(saved: Any, save_directory: str | os.PathLike) -> None:
    """Adds the remote-code bundle of a model or processor to the folder that it was just saved in.

    Inside hfvlm the bundle is cut from the installed package. A class that was itself loaded from a bundle has its
    code saved by transformers; the files that transformers does not know of are copied from where it came from.
    """
    try:
        from hfvlm.hub.bundle import write_bundle
    except ImportError:
        return
    if type(saved).__module__.startswith("hfvlm."):
        write_bundle(saved, save_directory)
