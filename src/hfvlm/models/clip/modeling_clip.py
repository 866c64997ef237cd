"""CLIP models.

Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020; original code
https://github.com/openai/CLIP (MIT). The sigmoid objective and its bias are SigLIP's, https://arxiv.org/abs/2303.15343,
as in https://github.com/mlfoundations/open_clip.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from hfvlm.losses.classification import classification_loss
from hfvlm.models.clip.configuration_clip import ClipConfig
from hfvlm.nn.linear import Linear
from hfvlm.outputs import ImageClassificationOutput
from hfvlm.two_tower import TwoTowerModel, TwoTowerPreTrainedModel, TwoTowerTextModel, TwoTowerVisionModel


class ClipPreTrainedModel(TwoTowerPreTrainedModel):
    """The base of every CLIP head."""

    config_class = ClipConfig
    base_model_prefix = "clip"

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        for name in ("visual_projection", "text_projection"):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                init.normal_(projection.weight, std=projection.in_features**-0.5)
        if isinstance(module, ClipModel):
            init.constant_(module.logit_scale, config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, config.logit_bias_init_value)


class ClipModel(ClipPreTrainedModel, TwoTowerModel):
    """Images and texts in one space: features, similarities, and the contrastive loss.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

    def __init__(self, config: ClipConfig, vision_model: nn.Module | None = None, text_model: nn.Module | None = None):
        super().__init__(config, vision_model, text_model)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.post_init()

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        limit = self.config.max_logit_scale
        if self.training and limit is not None and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(0.0, math.log(limit))
        return self.logit_scale.exp(), self.logit_bias


class ClipVisionModel(ClipPreTrainedModel, TwoTowerVisionModel):
    """CLIP's image tower alone, with its projection; reads the folder of a whole `ClipModel` too.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_", r"^classifier\."]


class ClipTextModel(ClipPreTrainedModel, TwoTowerTextModel):
    """CLIP's text tower alone, with its projection; reads the folder of a whole `ClipModel` too.

    Args:
        text_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^visual_projection\.", r"^logit_"]


class ClipForImageClassification(ClipPreTrainedModel):
    """CLIP's image tower and a linear classifier on the mean of its patches.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    trainable_stages = {"all": ("",), "classifier": ("classifier.",)}
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_"]

    def __init__(self, config: ClipConfig, vision_model: nn.Module | None = None):
        super().__init__(config)
        self._build_vision(vision_model)
        self.visual_projection = None
        self.classifier = Linear(config.vision_config.hidden_size, config.num_labels)
        self.post_init()

    def never_trained(self) -> list[nn.Module]:
        """What only the tower's pooled vector goes through, which is not read here."""
        parts = [getattr(self.vision_model, "attention_pool", None)]
        if getattr(self.config.vision_config, "final_norm", None) == "pooled":
            parts.append(self.vision_model.norm)
        return [part for part in parts if part is not None]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassificationOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`.
            labels: `[images]` class numbers, `[images, num_labels]` floats for several classes an image, or
                `[images]` floats where `num_labels` is 1.

        Returns:
            `logits` `[images, num_labels]`, and `loss` with labels.
        """
        self._refuse(kwargs)
        count = kwargs.pop("num_items_in_batch", None)
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        tokens = outputs.last_hidden_state
        if hasattr(self.vision_model, "patches"):
            tokens = self.vision_model.patches(tokens)
        logits = self.classifier(tokens.mean(dim=1))
        loss = None if labels is None else classification_loss(logits, labels, self.config, num_items_in_batch=count)
        return ImageClassificationOutput(
            loss=loss,
            loss_cls=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
