"""MoCo models without their objective: features and classes (`pretraining_moco` has the objective).

Momentum Contrast for Unsupervised Visual Representation Learning, https://arxiv.org/abs/1911.05722; Improved Baselines
with Momentum Contrastive Learning, https://arxiv.org/abs/2003.04297; An Empirical Study of Training Self-Supervised
Vision Transformers, https://arxiv.org/abs/2104.02057. Original code: https://github.com/facebookresearch/moco and
https://github.com/facebookresearch/moco-v3 (CC-BY-NC 4.0).
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.build import vision_tower
from hfvlm.losses.classification import classification_loss
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.models.moco.configuration_moco import MocoConfig
from hfvlm.nn.linear import Linear
from hfvlm.outputs import ImageClassificationOutput


#: what a pretraining folder holds beside the encoder
PRETRAINING_KEYS = [r"^projection\.", r"^predictor\.", r"^teacher_", r"^queue\."]


class MocoPreTrainedModel(VlmPreTrainedModel):
    """The base of every MoCo head.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    config_class = MocoConfig
    base_model_prefix = "moco"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResidualBlock", "PreNormBlock", "MbConv"]

    def __init__(self, config: MocoConfig, vision_model: nn.Module | None = None):
        super().__init__(config)
        self.vision_model = vision_tower(config.vision_config, vision_model)

    def get_image_features(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state` `[images, tokens, width]` and `pooler_output` `[images, width]` of the encoder."""
        return self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)


class MocoModel(MocoPreTrainedModel):
    """The encoder alone: features of images.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*PRETRAINING_KEYS, r"^classifier\."]

    def __init__(self, config: MocoConfig, vision_model: nn.Module | None = None):
        super().__init__(config, vision_model)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor | None = None, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[images, channels, h, w]`, `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take other sizes, too.

        Returns:
            `last_hidden_state` `[images, tokens, width]`, `pooler_output` `[images, width]`.

        Raises:
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs)
        return self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)


class MocoForImageClassification(MocoPreTrainedModel):
    """A linear classifier on the encoder's vector; `freeze("classifier")` makes it the linear probe of the papers.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    trainable_stages = {"all": ("",), "classifier": ("classifier.",)}
    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS

    def __init__(self, config: MocoConfig, vision_model: nn.Module | None = None):
        super().__init__(config, vision_model)
        self.classifier = Linear(config.feature_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MocoForImageClassification):
            init.normal_(module.classifier.weight, std=0.01)  # as the released linear probe starts

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ImageClassificationOutput:
        """As `MocoModel.forward`, and:

        Args:
            labels: `[images]` class numbers, `[images, num_labels]` floats for several classes an image, or
                `[images]` floats where `num_labels` is 1.
            num_items_in_batch: labels in the accumulated batch, as `Trainer` counts them.

        Returns:
            `logits` `[images, num_labels]`, and `loss` with labels.

        Raises:
            ValueError: labels of another shape, or of classes that do not exist.
        """
        self._refuse(kwargs)
        outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        logits, loss = self.classifier(outputs.pooler_output), None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return ImageClassificationOutput(
            loss=loss,
            loss_cls=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
