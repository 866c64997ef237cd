"""Beam search as the original releases ran it, inside stock `generate()`.

The releases of BLIP's time ran on transformers 4.x, which scored a text by its log-probability over ALL its tokens
before the end token, the prompt among them; transformers 5 divides by the number of generated tokens, the end token
among them. The 4.x search also asks a little later whether it can stop, and at the length limit offers the running
beams although ended ones rank above them. With a prompt, or near the limit, the two choose different captions.
"""

from contextvars import ContextVar

import torch
from transformers import GenerationMixin
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList


#: padding before each prompt of the search under way, `[prompts, 1]`, which no hook of the stock search is given
PADDING: ContextVar[torch.Tensor | int] = ContextVar("PADDING", default=0)


class BeamSearchMixin(GenerationMixin):
    """`GenerationMixin` whose beam search is that of the releases where `config.release_beam_search` is set."""

    def _beam_search(self, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        if not self._as_released:
            return super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        stopping_criteria = StoppingCriteriaList(  # the length limit is applied below, told from an end token
            criterion for criterion in stopping_criteria if not isinstance(criterion, MaxLengthCriteria)
        )
        mask = kwargs.get("decoder_attention_mask")
        padding = 0 if mask is None else (mask == 0).sum(-1, keepdim=True)[:: generation_config.num_beams]
        token = PADDING.set(padding)
        try:
            output = super()._beam_search(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        finally:
            PADDING.reset(token)
        ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
        if ends is not None and pad is not None:  # stock search takes a pad token 0 for none, and pads with the end
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            written = sequences[:, input_ids.shape[1] :]
            ended = torch.isin(written, ends).long()
            written.masked_fill_(ended.cumsum(-1) > ended, pad)
        return output

    @property
    def _as_released(self) -> bool:
        return getattr(self.config, "release_beam_search", False)

    def _update_finished_beams(self, **step) -> tuple[torch.Tensor, ...]:
        """Takes in the beams that just ended, and, as `_check_early_stop_heuristic` cannot see them, decides here
        which images are done: `step["is_early_stop_heuristic_unsatisfied"]` is updated in place."""
        if not self._as_released:
            return super()._update_finished_beams(**step)
        candidates, ended = step["topk_log_probs"], step["next_token_hits_stopping_criteria"]
        cur_len, limit = step["cur_len"], step["sequences"].shape[-1]
        padding = PADDING.get()
        step["decoder_prompt_len"] = 1 + padding  # the stock score divides by cur_len + 1 - this
        finished = super()._update_finished_beams(**step)
        _, scores, _, is_finished = finished

        best_length = limit if step["early_stopping"] == "never" and step["length_penalty"] > 0 else cur_len
        best = candidates.amax(-1, keepdim=True) / (best_length - padding) ** step["length_penalty"]
        no_better = (best <= scores.amin(-1, keepdim=True)) | (step["early_stopping"] is True)
        is_open = step["is_early_stop_heuristic_unsatisfied"]
        is_open &= ~(is_finished.all(-1, keepdim=True) & no_better)

        if cur_len + 1 == limit:  # images that are not done also take their running beams, the last token counted
            running = ~ended & ((~ended).cumsum(-1) <= step["num_beams"])
            names = ("sequences", "beam_scores", "beam_indices", "is_sent_finished")
            step.update(zip(names, finished), next_token_hits_stopping_criteria=running, cur_len=limit)
            step["top_num_beam_mask"] = torch.ones_like(step["top_num_beam_mask"])
            finished = super()._update_finished_beams(**step)
            is_open.zero_()
        return finished

    def _check_early_stop_heuristic(self, is_early_stop_heuristic_unsatisfied, **step) -> torch.Tensor:
        if self._as_released:
            return is_early_stop_heuristic_unsatisfied
        return super()._check_early_stop_heuristic(is_early_stop_heuristic_unsatisfied, **step)
