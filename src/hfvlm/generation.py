"""Generation from images through `forward`: the image encoded once, its keys and values kept once an image."""

from typing import Any

import torch
from transformers.cache_utils import EncoderDecoderCache

from hfvlm.beam_search import BeamSearchMixin


class ImageGenerationMixin(BeamSearchMixin):
    """`GenerationMixin` for a model that reads an image with an encoder and writes text with a decoder.

    Stock `generate()` repeats the encoder's output for every beam or sample and reorders the image's keys and values
    with the beams. Here both stay one an image, because `CrossAttention` lets the rows of an image share them. The
    text goes by the usual names (`input_ids`, `attention_mask`) in `generate()` and in `forward`.
    """

    def get_encoder(self, *args, **kwargs):
        return self.vision_model

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        if model_kwargs.get("attention_mask") is not None:  # stock generate() takes it for the encoder's
            model_kwargs["decoder_attention_mask"] = model_kwargs.pop("attention_mask")
        images = (inputs, model_kwargs.get("pixel_values"), model_kwargs.get("encoder_outputs"))
        if all(given is None for given in images):
            raise ValueError("pass pixel_values or encoder_outputs: there is no image to describe")
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_decoder_input_ids_for_generation(self, batch_size, model_input_name, model_kwargs, *args, **kwargs):
        prompts = model_kwargs.get("input_ids")
        if prompts is not None:  # an image may have several
            if len(prompts) % batch_size:
                raise ValueError(f"input_ids has {len(prompts)} prompts for {batch_size} images; pass a multiple")
            batch_size = len(prompts)
        return super()._prepare_decoder_input_ids_for_generation(
            batch_size, model_input_name, model_kwargs, *args, **kwargs
        )

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        encoder_outputs = model_kwargs.pop("encoder_outputs", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "encoder_outputs": encoder_outputs}

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: torch.Tensor) -> EncoderDecoderCache:
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        padding = kwargs.get("decoder_attention_mask")
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["input_ids"] = inputs.pop("decoder_input_ids")
        inputs["attention_mask"] = mask = inputs.pop("decoder_attention_mask", None)
        if padding is not None and mask is not None and mask.ndim != 2:
            # for a static cache the mask was made 4D, which no longer tells the tokens' numbers
            positions = (padding.long().cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -inputs["input_ids"].shape[1] :]
        return inputs
