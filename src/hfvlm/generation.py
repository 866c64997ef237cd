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


class SharedMemoryMixin(BeamSearchMixin):
    """`GenerationMixin` for a decoder whose rows share what an encoder made of an image or of a question about it.

    Stock `generate()` repeats the encoder's output for every beam or sample and reorders the memory's keys and values
    with the beams. Here both stay one a memory, because `CrossAttention` lets the rows of a memory share them.
    """

    #: what the encoder reads, in errors
    memories = "images"

    def _prepare_decoder_input_ids_for_generation(
        self, batch_size, model_input_name, model_kwargs, decoder_start_token_id, device=None
    ):
        name = "decoder_input_ids" if "decoder_input_ids" in model_kwargs else "input_ids"
        if model_kwargs.get(name) is None:
            return super()._prepare_decoder_input_ids_for_generation(
                batch_size, model_input_name, model_kwargs, decoder_start_token_id, device
            )
        prompts, mask = model_kwargs.pop(name), model_kwargs.get("decoder_attention_mask")
        if len(prompts) % batch_size:  # a memory may have several
            raise ValueError(f"{name} has {len(prompts)} prompts for {batch_size} {self.memories}; pass a multiple")
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
        mask = inputs.get("decoder_attention_mask")
        if padding is not None and mask is not None and mask.ndim != 2:
            # for a static cache the mask was made 4D, which no longer tells the tokens' numbers
            positions = (padding.long().cumsum(-1) - 1).clamp(min=0)
            inputs["decoder_position_ids"] = positions[:, -inputs["decoder_input_ids"].shape[1] :]
        return inputs


class ImageGenerationMixin(SharedMemoryMixin):
    """`GenerationMixin` for a model that reads an image with an encoder and writes text with a decoder.

    The text goes by the usual names (`input_ids`, `attention_mask`) in `generate()` and in `forward`.
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

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["input_ids"] = inputs.pop("decoder_input_ids")
        inputs["attention_mask"] = inputs.pop("decoder_attention_mask", None)
        if "decoder_position_ids" in inputs:
            inputs["position_ids"] = inputs.pop("decoder_position_ids")
        return inputs


class QuestionGenerationMixin(SharedMemoryMixin):
    """Stock `generate(pixel_values=..., input_ids=question, attention_mask=...)` for a model that reads a question
    with its image (`encode_questions`) and writes the answer, which `decoder_input_ids` may begin.

    The question is read once, and its keys and values are shared by all of its beams and samples. Where
    `config.answers_read_padding` is set, answers are written from the question's padding, too.
    """

    memories = "questions"

    def get_encoder(self, *args, **kwargs):
        return self.text_model

    def get_decoder(self, *args, **kwargs):
        return self.text_decoder

    def _validate_model_kwargs(self, model_kwargs):
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name != "question"})

    def memory_mask(self, read: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """`[questions, length]`: 1 at the places of a question that `generate` writes its answer from.

        Args:
            read: `[questions, length]` ids, or states `[questions, length, width]`.
            attention_mask: the question's; None: all of it.
        """
        if attention_mask is None or self.config.answers_read_padding:
            return torch.ones(read.shape[:2], dtype=torch.long, device=read.device)
        return attention_mask

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        encoded, mask = model_kwargs.get("encoder_outputs"), model_kwargs.get("attention_mask")
        if "question" not in model_kwargs:  # a draft model is given what the model was
            pixels = model_kwargs.pop("pixel_values", None)
            model_kwargs["question"] = {
                "pixel_values": inputs if pixels is None else pixels,
                "input_ids": model_kwargs.pop("input_ids", None),
                "attention_mask": mask,
                "interpolate_pos_encoding": model_kwargs.pop("interpolate_pos_encoding", False),
            }
        question = model_kwargs["question"]
        if encoded is None:
            self._require_question(question["pixel_values"], question["input_ids"])
        read = question["input_ids"] if encoded is None else encoded[0]
        model_kwargs["attention_mask"] = self.memory_mask(read, mask)
        return read, self.main_input_name, model_kwargs

    def _prepare_text_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor, model_kwargs, model_input_name, generation_config
    ):
        options = {}
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(generation_config, name):
                options[name] = True
        with torch.no_grad():
            model_kwargs["encoder_outputs"] = self.encode_questions(**model_kwargs["question"], **options)
        return model_kwargs

    #: its name in older transformers (5.17)
    _prepare_encoder_decoder_kwargs_for_generation = _prepare_text_encoder_decoder_kwargs_for_generation

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        mask = model_kwargs.pop("attention_mask", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, "attention_mask": mask}

    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs.pop("question", None)
        return inputs
