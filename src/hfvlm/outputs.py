"""Outputs that several architectures share."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
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


@dataclass
class FusionFeatures(ModelOutput):
    """What `extract_features` of a fusion model returns; what the mode does not encode is left out.

    Args:
        image_embeds: `[images, tokens, width]`.
        text_embeds: `[texts, length, hidden_size]`, read without the image.
        multimodal_embeds: `[texts, length, hidden_size]`, read with it.
        image_embeds_proj, text_embeds_proj: `[..., projection_dim]`, every token in the joint space, of length 1.
    """

    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    multimodal_embeds: torch.FloatTensor | None = None
    image_embeds_proj: torch.FloatTensor | None = None
    text_embeds_proj: torch.FloatTensor | None = None


@dataclass
class FusionOutput(ModelOutput):
    """What a fusion model's features, retrieval and pretraining heads return.

    Args:
        loss: scalar, when it is asked for: the sum of its parts, contrast (`loss_itc`), matching (`loss_itm`), masked
            language modelling (`loss_mlm`), language modelling (`loss_lm`).
        itm_logits: `[texts, 2]`, no match and match of each text and its image; with the loss
            `[3 * texts, 2]`: the pairs, then the texts with wrong images, then the images with wrong texts.
        logits_per_image: `[images, texts]` cosines over the temperature; with the loss `[texts, keys]`.
        logits_per_text: the same of the texts among the images.
        image_embeds, text_embeds: `[images, projection_dim]`, `[texts, projection_dim]`, of length 1.
        last_hidden_state: `[texts, length, hidden_size]`, texts read with their images; of one modality alone, its
            tokens.
        pooler_output: of one modality alone: its vector in the joint space before it is normalised.
        hidden_states, attentions, cross_attentions: of texts read with their images, a tensor a layer, where asked
            for.
        vision_model_output, text_model_output: what `get_image_features` and `get_text_features` return.
    """

    loss: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_mlm: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class AnswerOutput(ModelOutput):
    """What a model that answers questions returns.

    Args:
        loss: scalar, when `labels` are given; `loss_lm` is the same, by its name.
        logits: `[answers, length, vocab_size]`, or only the positions that `logits_to_keep` asks for.
        past_key_values: self-attention keys and values an answer, cross-attention ones a question.
        decoder_hidden_states, decoder_attentions, cross_attentions: of answers, a tensor a layer, where asked for.
        encoder_last_hidden_state: `[questions, length, hidden_size]`, questions read with their images.
        question_model_output: what `encode_questions` returns, unless it was given.
    """

    loss: torch.FloatTensor | None = None
    loss_lm: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: EncoderDecoderCache | None = None
    decoder_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    decoder_attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    question_model_output: FusionOutput | None = None


@dataclass
class AnswerRanking(ModelOutput):
    """What `rank_answers` returns of `k` answers a question.

    Args:
        answers: `[questions, k]`, long: indices into the list, the best first.
        scores: `[questions, k]`, theirs.
        candidates: `[questions, k]`, long: the same answers, the likeliest first tokens first.
        first_token_probabilities, log_likelihoods: `[questions, k]`, of the candidates: of their first tokens, and of
            the whole answers under the smoothed targets of training.
        first_token_logits: `[questions, vocab_size]`.
    """

    answers: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    candidates: torch.LongTensor | None = None
    first_token_probabilities: torch.FloatTensor | None = None
    log_likelihoods: torch.FloatTensor | None = None
    first_token_logits: torch.FloatTensor | None = None


@dataclass
class FusionClassificationOutput(ModelOutput):
    """What a fusion model that chooses among classes returns.

    Args:
        loss: scalar, when `labels` are given; `loss_cls` is the same, by its name.
        logits: `[texts, classes]`.
        last_hidden_state: `[texts, length, hidden_size]`, texts read with their images.
        hidden_states, attentions, cross_attentions: of the same, a tensor a layer, where asked for.
        vision_model_output: what the image tower returns.
        second_vision_model_output: the same of the second images, where a text is about two.
        image_pairs: `[texts, 2]`, long: the images that each text was read with, where two are chosen.
    """

    loss: torch.FloatTensor | None = None
    loss_cls: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    second_vision_model_output: BaseModelOutputWithPooling | None = None
    image_pairs: torch.LongTensor | None = None
