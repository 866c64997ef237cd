"""Heads that answer questions, called as LAVIS's are."""

from typing import Any

import torch
from torch import nn

from hfvlm.lavis.adapters import LavisModel


METHODS = ("rank", "generate")


class Answerer(LavisModel):
    """LAVIS's `albef_vqa`."""

    #: over which alpha grows
    warmup_epochs = 1

    def forward(self, samples: dict[str, Any]) -> Any:
        """The loss (`loss`, `loss_lm`) of answers.

        Args:
            samples: "image", "text_input" (a question an image), "answer" (texts, a question's together), "n_answers"
                `[questions]`, "weight" `[answers]`; "epoch", "iters" and "num_iters_per_epoch" say how far alpha has
                grown: it does over an epoch.
        """
        answers = self._answers(self._given(samples, "answer"))
        weights = torch.as_tensor(self._given(samples, "weight"), device=self.device)
        return self.head(
            **self._questions(samples),
            labels=answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100),
            answer_counts=torch.as_tensor(self._given(samples, "n_answers"), device=self.device),
            answer_weights=weights,
            alpha=self.alpha(samples, self.warmup_epochs),
        )

    @torch.no_grad()
    def predict_answers(
        self,
        samples: dict[str, Any],
        num_beams: int = 3,
        inference_method: str = "rank",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """An answer to each question.

        Args:
            samples: "image" `[images, channels, h, w]` and "text_input", a question an image.
            num_beams, max_len, min_len: of what is written; tokens, the start token among them.
            inference_method: "rank": choose from a list; "generate": write.
            num_ans_candidates: how many of the list are read whole: those whose first tokens are likeliest.
            answer_list: what to choose from.
            kwargs: not read, as in LAVIS.

        Raises:
            ValueError: an unknown method, one that chooses without a list, or more or fewer questions than images.
        """
        if inference_method not in METHODS:
            raise ValueError(f"inference_method must be 'rank' or 'generate', got {inference_method!r}")
        asked = self._questions(samples)
        if inference_method == "generate":
            lengths = {"max_length": max_len, "max_new_tokens": None, "min_length": min_len}
            ids = self.head.generate(**asked, **lengths, num_beams=num_beams, do_sample=False)
            return self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        if not answer_list:
            raise ValueError("inference_method='rank' needs answer_list, the answers to choose from")
        answers = self._answers(list(answer_list))
        made = self.head.rank_answers(
            **asked, answer_ids=answers["input_ids"], answer_mask=answers["attention_mask"], k=num_ans_candidates
        )
        # the likeliest whole answer, also where the head's own score counts the first token twice
        best = made.candidates.gather(1, made.log_likelihoods.argmax(dim=1, keepdim=True))[:, 0]
        return [answer_list[place] for place in best.tolist()]

    def _questions(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        inputs = {"pixel_values": self.images(samples), **self.texts(samples)}
        images, questions = len(inputs["pixel_values"]), len(inputs["input_ids"])
        if images != questions:
            raise ValueError(f"samples need a question an image, got {images} images and {questions} questions")
        return inputs

    def _answers(self, answers: list[str]) -> dict[str, torch.Tensor]:
        """Ids from the decoder's start token to [SEP], and their mask, `[answers, length]`."""
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(answers, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens["input_ids"][:, 0] = self.head.config.text_config.bos_token_id
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}


class BlipAnswerer(Answerer):
    """LAVIS's `blip_vqa`, which writes answers from the questions' padding, too."""

    def __init__(self, head: nn.Module, *args: Any):
        super().__init__(head, *args)
        head.config.answers_read_padding = head.config.release_beam_search = True
