"""The best of a list of answers to each question: first tokens choose, whole answers are judged."""

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hfvlm.losses.answers import answer_log_likelihoods
from hfvlm.outputs import AnswerRanking, FusionOutput


#: answers that go through the decoder at once; all of a question's always do
ROWS_AT_ONCE = 512


class AnswerRankingMixin:
    """For a model with `encode_questions`, a `text_decoder` that reads what it returns, and an `lm_head`."""

    #: a score counts the first token twice, and is a probability among the `k` (ALBEF)
    first_token_twice = False

    @torch.no_grad()
    def rank_answers(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        answer_ids: torch.LongTensor | None = None,
        answer_mask: torch.LongTensor | None = None,
        k: int = 128,
        encoder_outputs: FusionOutput | tuple | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> AnswerRanking:
        """The best of a list of answers to each question: the `k` whose first tokens are likeliest are read whole.

        A question's keys and values are projected once for all of its answers.

        Args:
            pixel_values, input_ids, attention_mask: images and questions, or `encoder_outputs`, as in `forward`.
            answer_ids: `[list, length]`, each answer from the decoder's start token on, padded on the right.
            answer_mask: `[list, length]`; None: all but `pad_token_id`.
            k: answers to read whole; all of them if there are no more.

        Raises:
            ValueError: an empty list, an answer without a token, padding on the left, answers that start otherwise
                than others, `k` below 1.
        """
        answer_ids, answer_mask = self._checked_answers(answer_ids, answer_mask)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if encoder_outputs is None:
            encoder_outputs = self.encode_questions(pixel_values, input_ids, attention_mask, interpolate_pos_encoding)
        states, k = encoder_outputs[0], min(k, len(answer_ids))
        share = max(ROWS_AT_ONCE // k, 1)
        parts = states.split(share)
        masks = [None] * len(parts) if attention_mask is None else attention_mask.split(share)
        found = [self._judge(part, mask, answer_ids, answer_mask, k) for part, mask in zip(parts, masks)]
        chosen, near, likely, logits = (torch.cat(column) for column in zip(*found))
        scores = (likely + near.log()).softmax(-1) if self.first_token_twice else likely
        order = scores.argsort(dim=-1, descending=True, stable=True)
        return AnswerRanking(
            answers=chosen.gather(1, order),
            scores=scores.gather(1, order),
            candidates=chosen,
            first_token_probabilities=near,
            log_likelihoods=likely,
            first_token_logits=logits,
        )

    def _judge(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        answer_ids: torch.Tensor,
        answer_mask: torch.Tensor,
        k: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of some questions the `k` candidates, the probabilities of their first tokens, their log-likelihoods, all
        `[questions, k]`, and the first token's logits `[questions, vocab_size]`.

        Answers start alike, so the start token is read once a question; what an answer's last token makes predicts
        nothing, and is left out.
        """
        own = self.text_decoder.config
        cache = EncoderDecoderCache(DynamicCache(config=own), DynamicCache(config=own))
        memory = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "past_key_values": cache}
        read = self.text_decoder(answer_ids[:1, :1].expand(len(states), 1), **memory)
        logits = self.lm_head(read.last_hidden_state[:, 0]).float()
        near, chosen = logits.softmax(-1)[:, answer_ids[:, 1]].topk(k, dim=-1)
        smoothing, log_probs = self.config.label_smoothing, logits.log_softmax(-1)
        likely = (1 - smoothing) * log_probs.gather(1, answer_ids[:, 1][chosen])
        likely = likely + smoothing * log_probs.mean(dim=-1, keepdim=True)
        if answer_ids.shape[1] > 2:
            ids, seen = answer_ids[chosen.flatten()], answer_mask[chosen.flatten()]
            new = ids[:, 1:-1]
            if cache.get_seq_length():
                cache.self_attention_cache.batch_repeat_interleave(k)  # the question's serve all as they are
            else:  # gradient checkpointing keeps none
                new, memory["past_key_values"] = ids[:, :-1], None
            read = self.text_decoder(new, attention_mask=seen[:, :-1], **memory)
            targets = ids[:, 2:].masked_fill(seen[:, 2:] == 0, -100)
            states = read.last_hidden_state[:, -targets.shape[1] :]
            rest = answer_log_likelihoods(states, targets, self.lm_head, smoothing)
            likely = likely + rest.view_as(likely)
        return chosen, near, likely, logits

    def _checked_answers(
        self, ids: torch.Tensor | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both `[list, length]`, without columns that are padding throughout."""
        if ids is None or not len(ids):
            raise ValueError("the list of answers is empty: pass answer_ids [list, length]")
        if ids.ndim != 2 or ids.shape[1] < 2:
            raise ValueError(
                f"answer_ids must be [list, length], a start token and one more at least, got {list(ids.shape)}"
            )
        if mask is None:
            mask = (ids != self.config.text_config.pad_token_id).long()
        if mask.shape != ids.shape:
            raise ValueError(f"answer_mask {list(mask.shape)} must have the shape of answer_ids {list(ids.shape)}")
        if not bool(mask[:, :2].all()):
            raise ValueError("answer_ids need a start token and a token each, then padding: one has none, or is empty")
        if bool((ids[:, 0] != ids[0, 0]).any()):
            raise ValueError("answer_ids must all start with the same token, the decoder's start token")
        longest = int(mask.sum(-1).max())
        return ids[:, :longest], mask[:, :longest]
