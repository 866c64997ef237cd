"""Generation from images through `forward`: the image encoded once, its keys and values kept once an image."""

from typing import Any

import torch
from transformers.cache_utils import EncoderDecoderCache

from hfvlm.beam_search import BeamSearchMixin


def start_prompts(
    prompts: torch.Tensor, mask: torch.Tensor | None, start: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts that begin with the start token: where it is missing, it goes between the padding and the first token.

    Args:
        prompts, mask: `[prompts, length]`, the mask 1 where there is a token; None: everywhere.
        start: `[prompts or 1, 1]`.
        name: the prompts' argument, for the error.

    Raises:
        ValueError: if some begin with the start token and others do not.
    """
    if mask is None:
        first = torch.zeros_like(prompts[:, :1])
    else:
        first = (mask.long().cumsum(-1) == 0).sum(-1, keepdim=True)
    started = prompts.gather(1, first.clamp(max=prompts.shape[1] - 1)) == start
    if started.all():
        return prompts, mask
    if started.any():
        raise ValueError(
            f"some prompts in {name} begin with the start token and some do not: give it to all of them or to none"
        )
    prompts = torch.cat([prompts[:, :1], prompts], dim=1).scatter(1, first, start.expand_as(first))
    if mask is not None:
        mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1).scatter(1, first, 1)
    return prompts, mask


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

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size, model_input_name, model_kwargs, decoder_start_token_id, device=None
    ):
        name = "decoder_input_ids" if "decoder_input_ids" in model_kwargs else "input_ids"
        if model_kwargs.get(name) is None:
            return super()._prepare_decoder_input_ids_for_generation(
                batch_size, model_input_name, model_kwargs, decoder_start_token_id, device
            )
        prompts, mask = model_kwargs.pop(name), model_kwargs.get("decoder_attention_mask")
        if len(prompts) % batch_size:  # an image may have several
            raise ValueError(f"{name} has {len(prompts)} prompts for {batch_size} images; pass a multiple")
        if mask is not None and mask.shape != prompts.shape:
            raise ValueError(f"attention_mask {list(mask.shape)} must have the shape of {name} {list(prompts.shape)}")
        prompts, mask = start_prompts(prompts, mask, decoder_start_token_id.view(-1, 1).to(prompts.device), name)
        if mask is not None:
            model_kwargs["decoder_attention_mask"] = mask
        return prompts, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, *args, **kwargs):
        if generation_config.use_cache and any(
            module.training and getattr(module, "gradient_checkpointing", False)
            for module in self.get_decoder().modules()
        ):
            raise ValueError(
                "generate() needs the cache, which layers drop in training with gradient checkpointing: call "
                "model.eval() before it, or pass use_cache=False"
            )
        return super()._prepare_cache_for_generation(generation_config, *args, **kwargs)

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
