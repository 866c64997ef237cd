"""Answers questions about images: one tower reads the question with its image, a second one writes the answer.

ALBEF, https://arxiv.org/abs/2107.07651; BLIP, https://arxiv.org/abs/2201.12086. The second tower reads the states of
the question, not the image.
"""

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.utils.generic import can_return_tuple

from hfvlm.answer_ranking import AnswerRankingMixin
from hfvlm.encoders.bert import BertLmHead, BertTower
from hfvlm.encoders.build import bert_tower
from hfvlm.fusion import FusionPreTrainedModel, fused_fields
from hfvlm.fusion_config import FusionConfig
from hfvlm.generation import QuestionGenerationMixin
from hfvlm.losses.answers import answer_losses
from hfvlm.losses.language import inputs_of_labels
from hfvlm.outputs import AnswerOutput, FusionOutput


class FusionForVisualQuestionAnswering(AnswerRankingMixin, QuestionGenerationMixin, FusionPreTrainedModel):
    """Writes answers, or ranks given ones.

    Args:
        vision_model, text_model: ready towers to use instead of fresh ones built from the config.
    """

    accepts_loss_kwargs = False  # divided by questions: `Trainer` averages accumulated batches itself
    _tied_weights_keys = {"lm_head.decoder.weight": "text_decoder.embeddings.word.weight"}

    def __init__(
        self, config: FusionConfig, vision_model: nn.Module | None = None, text_model: BertTower | None = None
    ):
        super().__init__(config)
        self._build_towers(vision_model, text_model, projected=False)
        self.text_decoder = bert_tower(config.answering_config(), "causal")
        self.lm_head = BertLmHead(self.text_decoder.config)
        self._build_more()
        self.post_init()

    def _build_more(self) -> None:
        """What a head has beside."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As stock, the words of both text towers."""
        self.text_model.resize_token_embeddings(*args, **kwargs)
        return super().resize_token_embeddings(*args, **kwargs)

    @staticmethod
    def _require_question(pixel_values: torch.Tensor | None, input_ids: torch.Tensor | None) -> None:
        given = {"pixel_values": pixel_values, "input_ids": input_ids}
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"a question is read with its image: pass {' and '.join(missing)}, or encoder_outputs")

    def encode_questions(
        self,
        pixel_values: torch.FloatTensor | None,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool = False,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> FusionOutput:
        """Questions read with their images: `last_hidden_state` `[questions, length, hidden_size]`.

        Args:
            pixel_values: `[images, channels, h, w]`.
            input_ids, attention_mask: `[images * g, length]`: `g` questions an image, an image's together.
            position_ids: `[questions or 1, length]`; left out: counted from the mask, and on through the padding
                behind a question where `config.answers_read_padding` is set.

        Raises:
            ValueError: one of them is missing.
        """
        self._require_question(pixel_values, input_ids)
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape [batch, length], got {list(input_ids.shape)}")
        if position_ids is None and self.config.answers_read_padding:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            if attention_mask is not None:
                position_ids = (position_ids - attention_mask.int().argmax(dim=-1, keepdim=True)).clamp(min=0)
        vision = self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        read = self.text_model(
            self.matching_ids(input_ids, attention_mask),
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=vision.last_hidden_state,
            **kwargs,
        )
        return FusionOutput(**fused_fields(read), vision_model_output=vision)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        answer_counts: torch.LongTensor | None = None,
        answer_weights: torch.FloatTensor | None = None,
        alpha: float | None = None,
        encoder_outputs: FusionOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        logits_to_keep: int = 0,
        interpolate_pos_encoding: bool = False,
        use_cache: bool = False,
        **kwargs,
    ) -> AnswerOutput:
        """
        Args:
            pixel_values: `[images, channels, h, w]`, or `encoder_outputs` of `encode_questions`.
            input_ids, attention_mask: `[images * g, length]`: questions, an image's together.
            decoder_input_ids: `[answers, length]`, each starting with the decoder's start token, a question's
                together. Left out: the start token alone, or with `labels` what these make: column 0 is the start
                token, and -100 may only follow an answer.
            decoder_attention_mask: `[answers, past + length]`.
            labels: `[answers, length]`, aligned with `decoder_input_ids`; -100 is not learned.
            answer_counts: `[questions]`, how many answers each question has; None: as many as every other.
            answer_weights: `[answers]`, what each answer's loss is multiplied by; None: 1.
            alpha: the teacher's say in the targets, 0 to 1, where there is a teacher; None: the config's.
            decoder_position_ids: `[answers, length]`; left out: counted from the mask.
            logits_to_keep: only the last so many positions' logits; 0: all.
            use_cache: return `past_key_values` to continue from.

        Returns:
            `loss`: the answers' losses, each the sum of its tokens', weighted, over the number of questions.

        Raises:
            ValueError: no image, no question, no answer, labels out of line with `decoder_input_ids`, or counts or
                weights that do not fit the answers.
            TypeError: for an argument that is a misspelling of one of these.
        """
        self._refuse(kwargs)
        text, question = self.config.text_config, None
        if encoder_outputs is None:
            encoder_outputs = question = self.encode_questions(
                pixel_values, input_ids, attention_mask, interpolate_pos_encoding, **kwargs
            )
        states = encoder_outputs[0]
        if decoder_input_ids is None and labels is not None:
            decoder_input_ids = inputs_of_labels(labels, text.bos_token_id, text.pad_token_id, "decoder_input_ids")
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((states.shape[0], 1), text.bos_token_id, device=states.device)
        if labels is not None and labels.shape != decoder_input_ids.shape:
            shapes = f"labels {list(labels.shape)} must be aligned with decoder_input_ids"
            raise ValueError(f"{shapes} {list(decoder_input_ids.shape)}")
        if use_cache and labels is None and past_key_values is None:
            own = self.text_decoder.config
            past_key_values = EncoderDecoderCache(DynamicCache(config=own), DynamicCache(config=own))
        answers = {
            "input_ids": decoder_input_ids,
            "attention_mask": decoder_attention_mask,
            "position_ids": decoder_position_ids,
            "encoder_attention_mask": attention_mask,
            "memory_index": self._question_of_answer(states.shape[0], decoder_input_ids.shape[0], answer_counts),
        }
        outputs = self.text_decoder(**answers, encoder_hidden_states=states, past_key_values=past_key_values, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            asked = (pixel_values, input_ids, attention_mask)
            taught, alpha = self._taught(asked, interpolate_pos_encoding, answers, alpha)
            losses = answer_losses(logits, labels, self.config.label_smoothing, taught, alpha)
            loss = self._weighted(losses, answer_weights).sum() / len(states)
        return AnswerOutput(
            loss=loss,
            loss_lm=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=states,
            question_model_output=question,
        )

    @staticmethod
    def _question_of_answer(questions: int, answers: int, counts: torch.Tensor | None) -> torch.Tensor | None:
        """`[answers]`: the question of each; None if each question has as many."""
        if not answers:
            raise ValueError("the list of answers is empty: pass one answer a question at least")
        if counts is None:
            if answers % questions:
                raise ValueError(
                    f"{answers} answers cannot be shared evenly among {questions} questions: pass answer_counts"
                )
            return None
        if counts.shape != (questions,) or int(counts.sum()) != answers or int(counts.min()) < 0:
            raise ValueError(
                f"answer_counts must be [{questions}], one a question, and add up to the {answers} answers, got "
                f"{counts.tolist()}"
            )
        return torch.arange(questions, device=counts.device).repeat_interleave(counts)

    @staticmethod
    def _weighted(losses: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        if weights is None:
            return losses
        if weights.shape != losses.shape:
            raise ValueError(f"answer_weights must be [{len(losses)}], one an answer, got {list(weights.shape)}")
        return weights * losses

    def _taught(
        self, question: tuple[torch.Tensor | None, ...], resize: bool, answers: dict, alpha: float | None
    ) -> tuple[torch.Tensor | None, float]:
        """A teacher's logits `[answers, length, vocab_size]` and its say.

        Args:
            question: `pixel_values`, `input_ids` and `attention_mask`.
            resize: take images of another size.
            answers: arguments of the decoder, but for the question's states.
        """
        if alpha:
            raise ValueError(f"alpha is {alpha}, but {type(self).__name__} has no teacher to listen to")
        return None, 0.0
