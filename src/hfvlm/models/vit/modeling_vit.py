"""ViT models.

An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, https://arxiv.org/abs/2010.11929; original
code https://github.com/google-research/vision_transformer (Apache-2.0).
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.build import vision_tower
from hfvlm.encoders.vit import VitTower
from hfvlm.losses.classification import classification_loss
from hfvlm.losses.masked_image import choose_patches, corrupt, mean_colours
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.models.vit.configuration_vit import VitConfig
from hfvlm.nn.linear import Linear
from hfvlm.outputs import ImageClassificationOutput


@dataclass
class VitMaskedImageOutput(ModelOutput):
    """What masked image modelling returns.

    Args:
        loss: scalar, unless `return_loss` is off; `loss_mim` is the same, by its name.
        logits: `[batch, patches, colours]`, of every patch.
        bool_masked_pos: `[batch, patches]`, the patches that were chosen.
        hidden_states, attentions: a tensor a layer, where asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_mim: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    bool_masked_pos: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class VitPreTrainedModel(VlmPreTrainedModel):
    """The base of every ViT head.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    config_class = VitConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["PreNormBlock"]

    def __init__(self, config: VitConfig, vision_model: VitTower | None = None):
        super().__init__(config)
        self.vision_model = vision_tower(config.vision_config, vision_model)


class VitFeatures(VitPreTrainedModel):
    """What features and classes are made of: the tower, and the layer before the classifier where there is one."""

    def __init__(self, config: VitConfig, vision_model: VitTower | None = None):
        super().__init__(config, vision_model)
        size = config.representation_size
        self.pre_logits = None if size is None else nn.Sequential(Linear(config.hidden_size, size), nn.Tanh())

    def get_image_features(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """As `VitModel.forward`."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if self.pre_logits is not None:
            outputs.pooler_output = self.pre_logits(outputs.pooler_output)
        return outputs


class VitModel(VitFeatures):
    """Features of images.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^colour_head\.", r"^mask_token$"]

    def __init__(self, config: VitConfig, vision_model: VitTower | None = None):
        super().__init__(config, vision_model)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor | None = None, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, channels, h, w]`, `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take any `h` and `w` that the patch size divides.

        Returns:
            `last_hidden_state` `[batch, tokens, hidden_size]`, the class token first where the tower has one;
            `pooler_output` `[batch, representation_size or hidden_size]`.

        Raises:
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs)
        return self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)


class VitForImageClassification(VitFeatures):
    """A linear classifier on the pooled vector.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    trainable_stages = {"all": ("",), "classifier": ("classifier.",)}
    _keys_to_ignore_on_load_unexpected = [r"^colour_head\.", r"^mask_token$"]

    def __init__(self, config: VitConfig, vision_model: VitTower | None = None):
        super().__init__(config, vision_model)
        self.classifier = Linear(config.representation_size or config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageClassificationOutput:
        """As `VitModel.forward`, and:

        Args:
            labels: `[batch]` class numbers, `[batch, num_labels]` floats for several classes an image, or `[batch]`
                floats where `num_labels` is 1; `config.problem_type` may name which.

        Returns:
            `logits` `[batch, num_labels]`, and `loss` with labels.

        Raises:
            ValueError: labels of another shape, or of classes that do not exist.
        """
        self._refuse(kwargs)
        count = kwargs.pop("num_items_in_batch", None)
        outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        logits, loss = self.classifier(outputs.pooler_output), None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config, self.config.label_smoothing, count)
        return ImageClassificationOutput(
            loss=loss,
            loss_cls=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class VitForMaskedImageModeling(VitPreTrainedModel):
    """Predicts the mean colour of patches that it sees changed or not at all: the paper's self-supervision (B.1.2).

    Training chooses the patches, and what becomes of each, afresh in every batch, by torch's random numbers.
    Evaluation chooses the same ones every time and for every image: its losses can be compared, it takes nothing from
    the random numbers, and an image's outputs do not depend on the others of its batch.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^pre_logits\."]
    accepts_loss_kwargs = False  # the mean over the patches of a batch: `Trainer` averages accumulated batches itself

    def __init__(self, config: VitConfig, vision_model: VitTower | None = None):
        super().__init__(config, vision_model)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.colour_head = Linear(config.hidden_size, config.colours)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VitForMaskedImageModeling):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
        return_loss: bool = True,
        **kwargs,
    ) -> VitMaskedImageOutput:
        """
        Args:
            pixel_values: `[batch, channels, h, w]`, normalised with the config's `image_mean` and `image_std`.
            bool_masked_pos: `[batch, patches]`, true for the patches to predict. Left out: `mim_ratio` of each
                image's. What becomes of a chosen patch is drawn in either case.
            interpolate_pos_encoding: take any `h` and `w` that the patch size divides.
            return_loss: compute the loss, the cross-entropy over the chosen patches.

        Returns:
            `logits` `[batch, patches, colours]`, `bool_masked_pos`, and `loss`.

        Raises:
            ValueError: `bool_masked_pos` of another shape.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs)
        config, tower = self.config, self.vision_model
        patch_embeds, grid = tower.embed(pixel_values, interpolate_pos_encoding)
        batch, patches, _ = patch_embeds.shape
        if bool_masked_pos is not None and tuple(bool_masked_pos.shape) != (batch, patches):
            raise ValueError(
                f"bool_masked_pos must have shape [{batch}, {patches}], an entry a patch; "
                f"got {list(bool_masked_pos.shape)}"
            )
        device, seed = patch_embeds.device, None if self.training else 0
        if bool_masked_pos is None:
            chosen = choose_patches(batch, patches, config.mim_ratio, device, seed)
        else:
            chosen = bool_masked_pos.to(device).bool()
        shares = (config.mim_mask_share, config.mim_swap_share)
        changed = corrupt(patch_embeds, chosen, self.mask_token, *shares, seed)
        outputs = tower(patch_embeds=changed, patch_grid=grid, **kwargs)
        tokens = tower.patches(outputs.last_hidden_state)
        if tower.config.final_norm == "pooled":  # the tower norms its pooled vector alone, which is not read here
            tokens = tower.norm(tokens)
        logits, loss = self.colour_head(tokens), None
        if return_loss:
            targets = mean_colours(pixel_values, grid, config.image_mean, config.image_std, config.mim_bits)
            losses = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            learned = chosen.flatten().to(losses.dtype)
            loss = (losses * learned).sum() / learned.sum().clamp(min=1)
        return VitMaskedImageOutput(
            loss=loss,
            loss_mim=loss,
            logits=logits,
            bool_masked_pos=chosen,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
