"""Two-tower models: images and texts encoded apart, compared in one space."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.build import keep_weights, vision_tower
from hfvlm.encoders.clip_text import ClipTextTower
from hfvlm.encoders.configuration import pooled_size
from hfvlm.losses.contrastive import contrastive_loss, full_precision, sigmoid_loss, similarity_logits
from hfvlm.losses.gradient_cache import in_micro_batches
from hfvlm.losses.pairs import precise
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.linear import Linear
from hfvlm.two_tower_config import TwoTowerConfig


TEXT_TOWERS = {tower.config_class.model_type: tower for tower in (ClipTextTower, BertTower)}


@dataclass
class ImageTextOutput(ModelOutput):
    """What a two-tower model returns: of images alone, of texts alone, or of both.

    Args:
        loss: scalar, when it is asked for; `loss_itc` is its contrastive part.
        logits_per_image: `[images, texts]`, scaled similarities; `logits_per_text` is the same, transposed.
        last_hidden_state, pooler_output: of one modality alone: the tower's tokens, and the vector in the joint space
            before it is normalised.
        image_embeds, text_embeds: `[images, projection_dim]`, `[texts, projection_dim]`, of length 1.
        vision_model_output, text_model_output: what `get_image_features` and `get_text_features` return.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


class TwoTowerPreTrainedModel(VlmPreTrainedModel):
    """The base of every head of a two-tower architecture, and of its towers alone."""

    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _no_split_modules = ["PreNormBlock", "ResidualBlock", "MbConv", "BertLayer"]

    def _build_vision(self, ready: nn.Module | None = None) -> None:
        config = self.config
        self.vision_model = vision_tower(config.vision_config, ready)
        self.visual_projection = (
            Linear(pooled_size(config.vision_config), config.projection_dim, bias=False)
            if config.project_images
            else None
        )

    def _build_text(self, ready: nn.Module | None = None) -> None:
        config = self.config
        text = config.text_config
        self.text_model = TEXT_TOWERS[text.model_type](text) if ready is None else keep_weights(ready, text)
        self.text_projection = Linear(text.hidden_size, config.projection_dim, bias=config.text_projection_bias)

    def get_image_features(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """What the image tower returns, its `pooler_output` `[images, projection_dim]` in the joint space (not of
        length 1 yet: `forward` gives `image_embeds`)."""
        outputs = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if self.visual_projection is not None:
            outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """What the text tower returns, its `pooler_output` `[texts, projection_dim]` in the joint space."""
        outputs = self.text_model(input_ids, attention_mask=attention_mask, **kwargs)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:  # BERT's first token, wherever the padding is
            pooled = outputs.last_hidden_state[:, 0]
            if attention_mask is not None and attention_mask.ndim == 2:
                first = attention_mask.int().argmax(dim=-1)
                pooled = outputs.last_hidden_state[torch.arange(first.shape[0], device=first.device), first]
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.text_projection(pooled),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _images_alone(self, pixel_values, interpolate_pos_encoding, **kwargs) -> ImageTextOutput:
        outputs = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        return ImageTextOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            image_embeds=nn.functional.normalize(outputs.pooler_output, dim=-1),
            vision_model_output=outputs,
        )

    def _texts_alone(self, input_ids, attention_mask, **kwargs) -> ImageTextOutput:
        outputs = self.get_text_features(input_ids, attention_mask, **kwargs)
        return ImageTextOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            text_embeds=nn.functional.normalize(outputs.pooler_output, dim=-1),
            text_model_output=outputs,
        )


class TwoTowerModel(TwoTowerPreTrainedModel):
    """Images and texts in one space; subclasses say how similarities are scaled.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    #: `Trainer` divides the loss by the accumulated steps itself: a contrastive loss is a mean over pairs
    accepts_loss_kwargs = False
    trainable_stages = {
        "all": ("",),
        "vision": ("vision_model.", "visual_projection."),
        "text": ("text_model.", "text_projection.", "logit_"),
    }

    def __init__(
        self, config: TwoTowerConfig, vision_model: nn.Module | None = None, text_model: nn.Module | None = None
    ):
        super().__init__(config)
        self._build_vision(vision_model)
        self._build_text(text_model)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(value)

    def scale_and_bias(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What similarities are multiplied by, and what is added to them, if anything."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        image_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> ImageTextOutput:
        """
        Args:
            input_ids, attention_mask: `[texts, length]`; left out: images alone.
            pixel_values: `[images, channels, h, w]`; left out: texts alone.
            image_ids: `[images]`, equal for rows that show the same image: they are no negatives of each other.
            return_loss: contrast row `i` of the images with row `i` of the texts; None: in training.
            interpolate_pos_encoding: take images of another size.

        Raises:
            ValueError: neither images nor texts; a loss of unequal numbers of them.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs, self.text_model.forward)
        if input_ids is None and pixel_values is None:
            raise ValueError("pass pixel_values, input_ids, or both: there is nothing to encode")
        if input_ids is None or pixel_values is None:
            if return_loss:
                raise ValueError("return_loss contrasts images with texts: pass both pixel_values and input_ids")
            if input_ids is None:
                return self._images_alone(pixel_values, interpolate_pos_encoding, **kwargs)
            return self._texts_alone(input_ids, attention_mask, **kwargs)
        return_loss = self.training if return_loss is None else return_loss
        if return_loss and len(pixel_values) != len(input_ids):
            raise ValueError(
                f"the loss pairs row i of pixel_values with row i of input_ids, got {len(pixel_values)} images and "
                f"{len(input_ids)} texts; pass return_loss=False to compare them all"
            )
        vision = text = None
        size = self.config.micro_batch_size
        if return_loss and size is not None and torch.is_grad_enabled():

            def encode_images(pixels: torch.Tensor) -> torch.Tensor:
                outputs = self.get_image_features(pixels, interpolate_pos_encoding, **kwargs)
                return nn.functional.normalize(outputs.pooler_output, dim=-1)

            rows = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}  # token types

            def encode_texts(ids: torch.Tensor, mask: torch.Tensor | None, *more: torch.Tensor) -> torch.Tensor:
                outputs = self.get_text_features(ids, mask, **{**kwargs, **dict(zip(rows, more))})
                return nn.functional.normalize(outputs.pooler_output, dim=-1)

            texts = (input_ids, attention_mask, *rows.values())
            image_embeds = in_micro_batches(encode_images, size, pixel_values, module=self.vision_model)
            text_embeds = in_micro_batches(encode_texts, size, *texts, module=self.text_model)
        else:
            vision = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
            text = self.get_text_features(input_ids, attention_mask, **kwargs)
            image_embeds = nn.functional.normalize(vision.pooler_output, dim=-1)
            text_embeds = nn.functional.normalize(text.pooler_output, dim=-1)
        scale, bias = self.scale_and_bias()
        loss = self._loss(image_embeds, text_embeds, scale, bias, image_ids) if return_loss else None
        logits = None
        if not return_loss or self.config.loss_chunk_size is None:  # chunks are for batches whose matrix is too large
            logits = _similarities(image_embeds, text_embeds, scale, bias)
        return ImageTextOutput(
            loss=loss,
            loss_itc=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.t(),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            vision_model_output=vision,
            text_model_output=text,
        )

    def _loss(self, image_embeds, text_embeds, scale, bias, image_ids) -> torch.Tensor:
        config = self.config
        gather = config.gather_features and self.training  # a process that evaluates alone would wait for the others
        options = {"image_ids": image_ids, "gather": gather, "chunk_size": config.loss_chunk_size}
        if config.objective == "sigmoid":
            return sigmoid_loss(image_embeds, text_embeds, scale, bias, **options)
        return contrastive_loss(
            image_embeds,
            text_embeds,
            scale,
            logit_bias=bias,
            label_smoothing=config.label_smoothing,
            local_loss=config.local_loss,
            **options,
        )


def _similarities(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`[images, texts]`, in fp32 also where the model is not: at a scale of 100, bf16 would round them to halves."""
    with full_precision(image_embeds.device):
        return similarity_logits(precise(image_embeds), precise(text_embeds), scale, bias)


class TwoTowerVisionModel(TwoTowerPreTrainedModel):
    """The image tower alone, with its projection; subclasses say which keys of a whole model it passes over.

    Args:
        vision_model: a ready tower to use instead of a fresh one built from the config.
    """

    input_modalities = ("image",)

    def __init__(self, config: TwoTowerConfig, vision_model: nn.Module | None = None):
        super().__init__(config)
        self._build_vision(vision_model)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.FloatTensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> ImageTextOutput:
        """`[images, channels, h, w]` -> `image_embeds`, `pooler_output` before its length is made 1, and tokens."""
        self._refuse(kwargs)
        return self._images_alone(pixel_values, interpolate_pos_encoding, **kwargs)


class TwoTowerTextModel(TwoTowerPreTrainedModel):
    """The text tower alone, with its projection; subclasses say which keys of a whole model it passes over.

    Args:
        text_model: a ready tower to use instead of a fresh one built from the config.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: TwoTowerConfig, text_model: nn.Module | None = None):
        super().__init__(config)
        self._build_text(text_model)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None, **kwargs
    ) -> ImageTextOutput:
        """`[texts, length]` -> `text_embeds`, `pooler_output` before its length is made 1, and tokens."""
        self._refuse(kwargs, self.text_model.forward)
        return self._texts_alone(input_ids, attention_mask, **kwargs)
