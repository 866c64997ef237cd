"""BLIP models.

BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and Generation,
https://arxiv.org/abs/2201.12086; original code https://github.com/salesforce/BLIP (BSD-3-Clause).
"""

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from hfvlm.encoders.bert import BertLmHead, BertTower
from hfvlm.fusion import FusionModel, FusionPreTrainedModel, first_positions
from hfvlm.generation import ImageGenerationMixin
from hfvlm.losses.language import inputs_of_labels, next_token_loss
from hfvlm.models.blip.configuration_blip import BlipConfig
from hfvlm.outputs import ImageTextLmOutput


#: what another head's folder holds beside retrieval, features, a captioner, and a head that answers
NOT_MATCHING = (
    r"^text_decoder\.",
    r"^text_model\.layers\.\d+\.causal_attention(_norm)?\.",
    r"^lm_head\.",
    r"^teacher_",
    r"^(image|text)_queue\.",
)
NOT_FEATURES = (
    *(*NOT_MATCHING, r"^itm_head\.", r"^temp$", r"^cls_head\."),
    r"^text_model\.layers\.\d+\.(second_cross_attention|merge)\.",
)
NOT_CAPTIONING = (
    r"^text_model\.layers\.\d+\.attention(_norm)?\.",
    *(r"^vision_proj\.", r"^text_proj\.", *NOT_FEATURES[3:]),
)
NOT_ANSWERING = (NOT_MATCHING[1], r"^vision_proj\.", r"^text_proj\.", *NOT_FEATURES[3:])
NOT_CLASSES = (*NOT_MATCHING, r"^itm_head\.", r"^temp$", r"^vision_proj\.", r"^text_proj\.")


class BlipPreTrainedModel(FusionPreTrainedModel):
    """The base of every BLIP head: a text that is judged with its image starts with [ENC]."""

    config_class = BlipConfig
    base_model_prefix = "blip"
    rerank_adds_similarity = True

    def matching_ids(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        first = first_positions(input_ids, attention_mask)[:, None]
        return input_ids.scatter(1, first, self.config.enc_token_id)


class BlipModel(BlipPreTrainedModel, FusionModel):
    """BLIP's features without a head: of images, of texts, and of texts that read their images.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_FEATURES]


class BlipForConditionalGeneration(ImageGenerationMixin, BlipPreTrainedModel):
    """Writes captions: an image tower, a causal text tower that reads it, and a language-modelling head.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    _keys_to_ignore_on_load_unexpected = [*NOT_CAPTIONING]
    trainable_stages = {
        "all": ("",),
        "text": ("text_model.", "lm_head."),
        "vision": ("vision_model.",),
    }
    _tied_weights_keys = {"lm_head.decoder.weight": "text_model.embeddings.word.weight"}

    def __init__(self, config: BlipConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None):
        super().__init__(config)
        self._build_towers(vision_model, text_model, "causal", projected=False)
        self.lm_head = BertLmHead(config.text_config)
        self.post_init()

    def get_decoder(self, *args, **kwargs) -> BertTower:
        return self.text_model

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutputWithPooling | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int = 0,
        interpolate_pos_encoding: bool = False,
        use_cache: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ImageTextLmOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`, or `encoder_outputs` of the image tower.
            input_ids: `[images * g, length]`: `g` texts an image, an image's texts together, each starting with the
                decoder's start token. Left out: the start token alone, or with `labels` what these make: column 0 is
                the start token, and -100 may only follow a text.
            attention_mask: `[images * g, past + length]`.
            position_ids: `[images * g, length]`; left out: counted from the mask.
            labels: `[images * g, length]`, aligned with `input_ids`; -100 is not learned (padding, the prompt).
            logits_to_keep: only the last so many positions' logits; 0: all.
            use_cache: return `past_key_values` to continue from.
            num_items_in_batch: labels in the accumulated batch, as `Trainer` counts them.

        Raises:
            ValueError: for labels out of line with `input_ids`, or a masked prompt without them.
            TypeError: for an argument that is a synonym or a misspelling of one of these.
        """
        self._refuse(kwargs)
        text = self.config.text_config
        if labels is not None and input_ids is None:
            input_ids = inputs_of_labels(labels, text.bos_token_id, text.pad_token_id, "input_ids")
        if labels is not None and labels.shape != input_ids.shape:
            raise ValueError(f"labels {list(labels.shape)} must be aligned with input_ids {list(input_ids.shape)}")
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("pass pixel_values or encoder_outputs: there is no image to describe")
            encoder_outputs = self.vision_model(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        image_embeds = encoder_outputs[0]
        if input_ids is None:
            input_ids = torch.full((image_embeds.shape[0], 1), text.bos_token_id, device=image_embeds.device)
        if use_cache and labels is None and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=text), DynamicCache(config=text))
        outputs = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels, self.config.label_smoothing, num_items_in_batch)
        return ImageTextLmOutput(
            loss=loss,
            loss_lm=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=image_embeds,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )
