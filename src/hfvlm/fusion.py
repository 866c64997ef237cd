"""Fusion models: a text tower that reads images by cross-attention, and a space where both are compared as well.

ALBEF and BLIP are two of them. Where `text_config.fusion_layer` is above 0 (ALBEF), the layers below encode the text
alone and fusion goes on from there; where it is 0 (BLIP), the same layers read a text without the image, or with it.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.build import bert_tower, vision_tower
from hfvlm.encoders.configuration import pooled_size
from hfvlm.fusion_config import FusionConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import pick
from hfvlm.nn.linear import Linear
from hfvlm.outputs import FusionFeatures, FusionOutput


def first_positions(texts: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Where each text's first token is, wherever its padding is: `[texts, length, ...]` -> `[texts]`."""
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.zeros(texts.shape[0], dtype=torch.long, device=texts.device)
    return attention_mask.int().argmax(dim=-1)


def first_tokens(states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Each text's first token: `[texts, length, width]` -> `[texts, width]`."""
    if attention_mask is None or attention_mask.ndim != 2:
        return states[:, 0]
    return pick(states, first_positions(states, attention_mask))[:, 0]


def fused_fields(outputs: BaseModelOutputWithPastAndCrossAttentions) -> dict[str, Any]:
    """What `fuse` returns, as fields of a `FusionOutput`."""
    names = ("last_hidden_state", "hidden_states", "attentions", "cross_attentions")
    return {name: getattr(outputs, name) for name in names}


class FusionPreTrainedModel(VlmPreTrainedModel):
    """The base of every head: builds the towers, and runs them in each of the ways that heads need."""

    config_class = FusionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["PreNormBlock", "ResidualBlock", "MbConv", "BertLayer"]

    def _build_towers(
        self,
        vision_model: nn.Module | None,
        text_model: BertTower | None,
        direction: str = "bidirectional",
        projected: bool = True,
        pairing: str | None = None,
    ) -> None:
        config = self.config
        self.vision_model = vision_tower(config.vision_config, vision_model)
        self.text_model = bert_tower(config.text_config, direction, text_model, pairing)
        projected = projected and config.projection_dim > 0
        self.vision_proj = Linear(pooled_size(config.vision_config), config.projection_dim) if projected else None
        self.text_proj = Linear(config.text_config.hidden_size, config.projection_dim) if projected else None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FusionPreTrainedModel) and isinstance(getattr(module, "temp", None), nn.Parameter):
            init.constant_(module.temp, module.config.initial_temperature)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(value)

    @property
    def fusion_layer(self) -> int:
        return self.config.text_config.fusion_layer

    def matching_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The ids `[texts, length]` as fusion reads them."""
        return input_ids

    def get_image_features(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """What the image tower returns; with projections, its `pooler_output` `[images, projection_dim]` is in the
        joint space, not of length 1 yet."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if self.vision_proj is not None:
            outputs.pooler_output = self.vision_proj(outputs.pooler_output)
        return outputs

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Texts read without an image: `last_hidden_state` `[texts, length, hidden_size]`, and as `pooler_output` the
        first token's, with projections `[texts, projection_dim]` in the joint space."""
        layers = (0, self.fusion_layer) if self.fusion_layer else None
        outputs = self.text_model(input_ids, attention_mask=attention_mask, layers=layers, **kwargs)
        pooled = first_tokens(outputs.last_hidden_state, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pooled if self.text_proj is None else self.text_proj(pooled),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def fuse(
        self,
        image_embeds: Any,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        text_embeds: torch.Tensor | None = None,
        memory_index: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Texts read with their images: `last_hidden_state` `[texts, length, hidden_size]`.

        Args:
            image_embeds: `[images, tokens, width]`; where two images are read, `[2, images, tokens, width]`.
            input_ids, attention_mask: `[texts, length]`.
            text_embeds: `[texts, length, hidden_size]` as `get_text_features` gives, instead of ids, where fusion goes
                on from there.
            memory_index: `[texts]`: the image that each text reads; None: as many texts an image, in order.
        """
        options = {
            "attention_mask": attention_mask,
            "encoder_hidden_states": image_embeds,
            "memory_index": memory_index,
            **kwargs,
        }
        if not self.fusion_layer or text_embeds is None:
            if input_ids.ndim == 2:  # the tower refuses other ids
                input_ids = self.matching_ids(input_ids, attention_mask)
            return self.text_model(input_ids, **options)
        layers = (self.fusion_layer, len(self.text_model.layers))
        return self.text_model(hidden_states=text_embeds, layers=layers, **options)

    def extract_features(self, inputs: dict[str, Any], mode: str = "multimodal") -> FusionFeatures:
        """Features as LAVIS gives them.

        Args:
            inputs: `pixel_values` for "image" and "multimodal", `input_ids` and `attention_mask` for "text" and
                "multimodal".
            mode: what to encode: "image", "text", or "multimodal", texts that read their images.

        Returns:
            `image_embeds` `[images, tokens, width]`, `text_embeds` `[texts, length, hidden_size]`,
            `multimodal_embeds` `[texts, length, hidden_size]`, and with projections `*_embeds_proj`, every token in
            the joint space, of length 1.

        Raises:
            ValueError: an unknown mode, or inputs that it needs are missing.
        """
        needs = {
            "image": ("pixel_values",),
            "text": ("input_ids",),
            "multimodal": ("pixel_values", "input_ids"),
        }
        if mode not in needs:
            raise ValueError(f"mode must be one of {', '.join(needs)}, got {mode!r}")
        missing = [name for name in needs[mode] if inputs.get(name) is None]
        if missing:
            raise ValueError(f"mode {mode!r} needs {' and '.join(missing)} among the inputs")
        features = FusionFeatures()
        mask = inputs.get("attention_mask")
        if mode != "text":
            resize = inputs.get("interpolate_pos_encoding", False)
            outputs = self.vision_model(inputs["pixel_values"], interpolate_pos_encoding=resize)
            features.image_embeds = outputs.last_hidden_state
            features.image_embeds_proj = self._unit(self.vision_proj, features.image_embeds)
        if mode == "text" or (mode == "multimodal" and self.fusion_layer):
            features.text_embeds = self.get_text_features(inputs["input_ids"], mask).last_hidden_state
            features.text_embeds_proj = self._unit(self.text_proj, features.text_embeds)
        if mode == "multimodal":
            fused = self.fuse(features.image_embeds, inputs["input_ids"], mask, features.text_embeds)
            features.multimodal_embeds = fused.last_hidden_state
        return features

    @staticmethod
    def _unit(projection: nn.Module | None, states: torch.Tensor) -> torch.Tensor | None:
        return None if projection is None else nn.functional.normalize(projection(states), dim=-1)


class FusionModel(FusionPreTrainedModel):
    """Features without a head: of images, of texts, and of texts that read their images.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    def __init__(
        self, config: FusionConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None
    ):
        super().__init__(config)
        self._build_towers(vision_model, text_model)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> FusionOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`; left out: texts alone.
            input_ids, attention_mask: `[images * g, length]`, `g` texts an image, an image's texts together; left out:
                images alone.
            interpolate_pos_encoding: take images of another size.

        Returns:
            `last_hidden_state`: the texts' read with their images, or the tokens of what is given alone.

        Raises:
            ValueError: neither images nor texts.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        if input_ids is None and pixel_values is None:
            raise ValueError("pass pixel_values, input_ids, or both: there is nothing to encode")
        made, vision, text = {}, None, None
        if pixel_values is not None:
            made["vision_model_output"] = vision = self.get_image_features(
                pixel_values, interpolate_pos_encoding, **kwargs
            )
            made["image_embeds"] = self._in_joint_space(self.vision_proj, vision)
        if input_ids is not None and (vision is None or self.text_proj is not None or self.fusion_layer):
            made["text_model_output"] = text = self.get_text_features(input_ids, attention_mask, **kwargs)
            made["text_embeds"] = self._in_joint_space(self.text_proj, text)
        if input_ids is not None and vision is not None:
            read = None if text is None else text.last_hidden_state
            made |= fused_fields(self.fuse(vision.last_hidden_state, input_ids, attention_mask, read, **kwargs))
        else:
            part = vision or text
            made |= {"last_hidden_state": part.last_hidden_state, "pooler_output": part.pooler_output}
        return FusionOutput(**made)

    @staticmethod
    def _in_joint_space(projection: nn.Module | None, outputs: BaseModelOutputWithPooling) -> torch.Tensor | None:
        return None if projection is None else nn.functional.normalize(outputs.pooler_output, dim=-1)
