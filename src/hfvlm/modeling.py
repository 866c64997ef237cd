"""The base of every hfvlm model: what it supports, freezing by stage, and saving together with its code."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from hfvlm.saving import SavesCode


#: other libraries' names of an argument
SYNONYMS = {"decoder_input_ids": "input_ids", "decoder_attention_mask": "attention_mask"}
#: what some heads read, and what would change the outputs of a head that does not
READ_BY_SOME = ("position_ids", "inputs_embeds", "bool_masked_pos")


@cache
def meant(forward: Callable, name: str) -> str | None:
    """The argument of `forward` that an extra `name` is a synonym or a misspelling of; None if it is neither."""
    if name in TransformersKwargs.__optional_keys__:
        return None
    known = inspect.signature(forward).parameters
    return next(iter([SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name, known, 1, 0.8)), None)


def refuse_misnamed(forward: Callable, extra: Mapping[str, Any], *readers: Callable) -> None:
    """Extra arguments go on to the layers, which ignore what they do not know: refuses those that meant another, and
    those that other models read and this one would not.

    Args:
        readers: functions that the extra arguments go on to and that read some of them.
    """
    for name, value in extra.items():
        argument = meant(forward, name)
        if argument is not None:
            raise TypeError(f"unknown argument {name!r}, did you mean {argument!r}?")
        if value is None or name not in READ_BY_SOME:
            continue
        if not any(name in inspect.signature(reader).parameters for reader in (forward, *readers)):
            raise TypeError(f"this model does not read {name!r}, leave it out")


class VlmPreTrainedModel(SavesCode, PreTrainedModel):
    """`PreTrainedModel` with the habits of this house: every attention backend, and folders that load anywhere."""

    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True

    #: What trains at each named stage: prefixes of parameter names, as `freeze` takes them.
    trainable_stages: dict[str, tuple[str, ...]] = {"all": ("",)}

    #: The stage that `freeze` was asked for last.
    _stage: str | None = None

    def __init__(self, config: PreTrainedConfig, *inputs, **kwargs):
        # from_pretrained(folder, field=value) and assignments change a config after it was checked; the towers within
        # check their own
        validate = getattr(config, "validate", None)
        if validate is not None:
            validate()
        super().__init__(config, *inputs, **kwargs)

    def _initialize_weights(self, module, is_custom_code: bool = False) -> None:
        # Modules outside transformers are passed over once all of their own parameters are loaded, and those that
        # have none of their own always: a block could not initialise its layers. Every `_init_weights` here draws
        # with `transformers.initialization`, which leaves loaded parameters alone, so none needs passing over.
        super()._initialize_weights(module)

    def _refuse(self, extra: Mapping[str, Any], *readers: Callable) -> None:
        """`refuse_misnamed` for what `forward` was given beside its arguments."""
        if extra and not torch.compiler.is_compiling():
            refuse_misnamed(type(self).forward, extra, *readers)

    def never_trained(self) -> Iterable[nn.Module]:
        """The parts that no stage trains, because the loss's gradient does not reach them: DDP would wait for it."""
        return ()

    def _hold_never_trained(self) -> None:
        for part in self.never_trained():
            part.requires_grad_(False)

    def post_init(self) -> None:
        super().post_init()
        self._hold_never_trained()

    def freeze(self, stage: str) -> None:
        """Leaves only the parameters of one stage trainable; the rest is in evaluation mode, also during training.

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
        self._stage = stage
        self.train(self.training)

    def train(self, mode: bool = True) -> "VlmPreTrainedModel":
        """As `torch.nn.Module.train`, but after `freeze` the modules that are frozen as a whole stay in evaluation
        mode: no dropout there, and batch norm keeps its statistics."""
        super().train(mode)
        self._hold_never_trained()  # from_pretrained(), which ends here, has made every parameter a trained one
        if mode and self._stage is not None:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self
