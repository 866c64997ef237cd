"""Questions about images on disk, with their answers, and batches of them for heads that answer."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hfvlm.data.captions import column
from hfvlm.data.tables import read_lines, require_texts
from hfvlm.processing import reading_options


def read_questions(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """Reads `vqa.jsonl`: a line a question, `{"image": relative path, "question": ..., "split": ...}`.

    With them comes an `"answer"`, a string, or `"answers"`, a list of what each of several people answered.

    Returns:
        the rows of `split` (all if None): `image` resolved against the file's folder, and `answers`, always a list.

    Raises:
        ValueError: a line that is not such an object, by file and line; no row, or none in the split.
    """
    return read_lines(path, split, _asked)


def _asked(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    require_texts(row, "image", "question")
    if "answers" not in row and "answer" not in row:
        raise ValueError(f"has neither 'answer' nor 'answers'; it has {', '.join(row)}")
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError("'answer' must be a string, or 'answers' a list of at least one")
    return {**row, "image": folder / row["image"], "answers": answers}


def answer_shares(answers: Sequence[str]) -> dict[str, float]:
    """Each answer once, in the order of its first giver, with the share of the people who gave it."""
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def commonest_answer(answers: Sequence[str]) -> str:
    """What most people answered; of several, what was answered first."""
    return Counter(answers).most_common(1)[0][0]


def count_unlearnable(rows: Sequence[Sequence[str]], tokenizer: Any) -> int:
    """How many rows of answers have none that the tokenizer can write: each has a word that it does not know."""
    texts = sorted({answer for answers in rows for answer in answers})
    if not texts or tokenizer.unk_token_id is None:
        return 0
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = {text for text, own in zip(texts, ids, strict=True) if tokenizer.unk_token_id in own}
    return sum(unknown.issuperset(answers) for answers in rows)


class AnswerCollator:
    """Items `{"image": PIL image, "question": ..., "answers": what each of several people answered}` to a batch.

    Every answer is learned once a question, weighted by the share of the people who gave it, as ALBEF and BLIP do; one
    with a word that the tokenizer does not know weighs nothing, it could not be written. A `"weight"` in the items
    multiplies these: the papers' recipes count answers of Visual Genome less than those of VQA.

    Args:
        processor: of a model that answers questions.
        max_length: tokens a question may have; None: the processor's own limit. An answer may have as many as the
            tokenizer's limit.

    Raises:
        ValueError: when called, an item without one of its fields: `Trainer` needs `remove_unused_columns=False`; an
            item without answers, or a question or an answer without a word.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self.processor, self.max_length, self.options = processor, max_length, reading_options(processor)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.batch(items, images=column(items, "image"))

    def batch(self, items: list[dict[str, Any]], **images: Any) -> dict[str, torch.Tensor]:
        """The questions of `items` with their answers, and what the processor makes of `images`.

        Returns:
            `input_ids` and `attention_mask` `[questions, length]`; `labels` `[answers, length]`, a question's answers
            together: -100 in the place of the start token, an answer, the end token, -100; `answer_counts`
            `[questions]`; `answer_weights` `[answers]`.
        """
        questions, shares = column(items, "question"), []
        for question, answers in zip(questions, column(items, "answers"), strict=True):
            if not question.strip():
                raise ValueError("a question is empty: leave it out of the data")
            if not answers or not all(answer.strip() for answer in answers):
                raise ValueError(
                    f"the question {question!r} has no answer, or an empty one: leave such out of the data"
                )
            shares.append(answer_shares(answers))
        row_weights = [item.get("weight", 1.0) for item in items]
        weights = [weight * share for weight, own in zip(row_weights, shares) for share in own.values()]
        labels = self._labels([answer for own in shares for answer in own])
        unknown = (labels == self.processor.tokenizer.unk_token_id).any(dim=-1)
        batch = self.processor(text=questions, max_length=self.max_length, **self.options, **images)
        return {
            **batch,
            "labels": labels,
            "answer_counts": torch.tensor([len(own) for own in shares]),
            "answer_weights": torch.tensor(weights).masked_fill(unknown, 0.0),
        }

    def _labels(self, answers: list[str]) -> torch.Tensor:
        """`[answers, length]`; the model puts its own start token first, the architectures have different ones."""
        tokenizer = self.processor.tokenizer
        words = tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"]
        room = tokenizer.model_max_length - 2
        rows = [torch.tensor([-100, *ids[:room], tokenizer.sep_token_id]) for ids in words]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
