"""Outputs that several architectures share."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import EncoderDecoderCache
from transformers.utils import ModelOutput


@dataclass
class ImageTextLmOutput(ModelOutput):
    """What a model that writes text about images returns.

    Args:
        loss: scalar, when `labels` are given; `loss_lm` is its language-modelling part.
        logits: `[batch, length, vocab_size]`, or only the positions that `logits_to_keep` asks for.
        past_key_values: self-attention keys and values a text row, cross-attention ones an image.
        encoder_last_hidden_state: `[images, tokens, width]`.
        decoder_hidden_states, decoder_attentions, cross_attentions, encoder_hidden_states, encoder_attentions:
            a tensor a layer, where asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: EncoderDecoderCache | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    encoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    encoder_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class ImageClassificationOutput(ModelOutput):
    """What a model that classifies images returns.

    Args:
        loss: scalar, when `labels` are given; `loss_cls` is the same, by its name.
        logits: `[batch, num_labels]`.
        hidden_states, attentions: a tensor a layer, where asked for.
    """

    loss: torch.FloatTensor | None = None
    loss_cls: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
