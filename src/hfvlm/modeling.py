"""The base of every hfvlm model: what it supports, freezing by stage, and saving together with its code."""

from transformers import PreTrainedModel

from hfvlm.saving import SavesCode


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
        if mode and self._stage is not None:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self
