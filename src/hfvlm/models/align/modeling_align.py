"""ALIGN models.

Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision,
https://arxiv.org/abs/2102.05918. Its authors published no code; weights trained by others are in transformers' format.
"""

import torch
from torch import nn
from transformers import initialization as init

from hfvlm.models.align.configuration_align import AlignConfig
from hfvlm.two_tower import TwoTowerModel, TwoTowerPreTrainedModel, TwoTowerTextModel, TwoTowerVisionModel


class CarriedPooler(nn.Module):
    """The pooler that comes with a BERT and that nothing reads: buffers, so that no optimizer waits for gradients."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(hidden_size, hidden_size))
        self.register_buffer("bias", torch.zeros(hidden_size))


class AlignPreTrainedModel(TwoTowerPreTrainedModel):
    """The base of every ALIGN head."""

    config_class = AlignConfig
    base_model_prefix = "align"

    def _build_text(self, ready: nn.Module | None = None) -> None:
        super()._build_text(ready)
        if self.config.text_pooler:
            self.text_pooler = CarriedPooler(self.config.text_config.hidden_size)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for name in ("visual_projection", "text_projection"):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                init.xavier_uniform_(projection.weight)
        if isinstance(module, CarriedPooler):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AlignModel):
            init.constant_(module.temperature, self.config.temperature_init_value)


class AlignModel(AlignPreTrainedModel, TwoTowerModel):
    """Images and texts in one space: features, similarities, and the contrastive loss.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    trainable_stages = {
        "all": ("",),
        "vision": ("vision_model.", "visual_projection."),
        "text": ("text_model.", "text_projection.", "temperature"),
    }

    def __init__(
        self, config: AlignConfig, vision_model: nn.Module | None = None, text_model: nn.Module | None = None
    ):
        super().__init__(config, vision_model, text_model)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        self.post_init()

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.training and self.temperature.requires_grad:
            with torch.no_grad():
                self.temperature.clamp_(min=self.config.min_temperature)
        return 1 / self.temperature, None


class AlignVisionModel(AlignPreTrainedModel, TwoTowerVisionModel):
    """ALIGN's image tower alone; reads the folder of a whole `AlignModel` too.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^text_pooler\.", r"^temperature$"]


class AlignTextModel(AlignPreTrainedModel, TwoTowerTextModel):
    """ALIGN's text tower alone, with its projection; reads the folder of a whole `AlignModel` too.

    Args:
        text_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^temperature$"]
