"""The stock `Trainer` teaches every head that reads images with texts eight rows by heart: its loss nears the floor,
and what the head then says is right."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contract.heads import FUSED, LEARNERS, Head, every, heads
from e2e.test_every_learner import build_trainer
from PIL import Image
from tiny import WORDS, tiny_processor
from transformers import Trainer

from hfvlm.data.captions import CaptionCollator, GroupedPairCollator
from hfvlm.data.classes import ClassCollator
from hfvlm.data.questions import AnswerCollator
from hfvlm.losses.text_assignment import assigned


ROWS = 8
#: so that the losses have known floors, and the teacher keeps up
EXACT = {"label_smoothing": 0.0, "alpha": 0.0, "momentum": 0.9, "mlm_probability": 0.5}


def rows() -> list[dict[str, Any]]:
    """A photo each, with texts of one to four words; every question and statement is about several photos, which tell
    what is right."""
    torch.manual_seed(0)
    photos = [Image.fromarray(torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()) for _ in range(ROWS)]
    texts = [" ".join(WORDS[5 * i + 3 :][: 1 + i % 4]) for i in range(ROWS)]
    return [
        {
            "image": photos[i],
            "image_second": photos[(i + 3) % ROWS],
            "index": i,
            "captions": [texts[i]],
            "question": "a dog" if i % 2 else "is the cat on the street",
            "answers": [texts[i]],
            "text": texts[i // 2],
            "label": i % 2,
        }
        for i in range(ROWS)
    ]


class Lesson:
    """A trained head with what it has learned.

    Args:
        head: which.
        output: a folder for the trainer.
        make_collator: `(processor)` -> what makes a batch of rows.
        columns: of the rows, those that the batches are made of.
        texts: how often a photo's text is in a batch.
        steps, learning_rate: of the training.
    """

    def __init__(
        self,
        head: Head,
        output: Path,
        make_collator: Callable[[Any], Callable],
        *columns: str,
        texts: int = 1,
        steps: int = 80,
        learning_rate: float = 4e-3,
    ):
        self.processor = tiny_processor(head.model_type)
        self.rows = [{name: row[name] for name in columns} for row in rows()]
        for row in self.rows if texts > 1 else ():
            row["captions"] = row["captions"] * texts
        self.trainer: Trainer = build_trainer(
            head,
            output,
            config={name: value for name, value in EXACT.items() if hasattr(head.config(), name)},
            data=self.rows,
            data_collator=make_collator(self.processor),
            per_device_train_batch_size=ROWS,
            per_device_eval_batch_size=ROWS,
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
        )
        self.before = self.trainer.evaluate()["eval_loss"]
        self.trainer.train()
        self.after = self.trainer.evaluate()["eval_loss"]
        self.model = self.trainer.model.eval()
        self.batch = self.trainer.data_collator(self.rows)


HEADS = heads(lambda head: head in LEARNERS, FUSED)
ANSWERING = heads(lambda head: head.takes("answer_counts"), HEADS)
CAPTIONING = heads(lambda head: head.takes("labels", "logits_to_keep") and head not in ANSWERING, HEADS)
ASSIGNING = heads(lambda head: head.takes("image_pairs"), HEADS)
PAIRING = heads(lambda head: head.takes("return_loss") and head not in ASSIGNING, HEADS)
CHOOSING = heads(lambda head: head.takes("labels") and head not in (*ANSWERING, *CAPTIONING), HEADS)


def test_no_head_is_left_out():
    taught = [*ANSWERING, *CAPTIONING, *ASSIGNING, *PAIRING, *CHOOSING]
    assert len(taught) == len(HEADS) == len({head.cls for head in taught})


@every(CAPTIONING)
def test_captions(head, tmp_path):
    lesson = Lesson(head, tmp_path, CaptionCollator, "image", "captions")
    assert (lesson.batch["labels"] == -100).any(), "the captions are of different lengths"
    assert lesson.after < 0.02 < lesson.before / 50
    ids = lesson.model.generate(pixel_values=lesson.batch["pixel_values"], max_new_tokens=8)
    assert lesson.processor.batch_decode(ids) == [row["captions"][0] for row in lesson.rows]


@every(ANSWERING)
def test_answers(head, tmp_path):
    """Written, and chosen among all; two questions are asked about the photos, which tell what the answer is."""
    lesson = Lesson(head, tmp_path, AnswerCollator, "image", "question", "answers")
    assert (lesson.batch["labels"] == -100)[:, 1:].any(), "the answers are of different lengths"
    assert lesson.after < 0.1 < lesson.before / 50
    tokenizer, answers = lesson.processor.tokenizer, [row["answers"][0] for row in lesson.rows]
    asked = {name: lesson.batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    ids = lesson.model.generate(**asked, max_new_tokens=8)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == answers
    start, labels = lesson.model.config.text_config.bos_token_id, lesson.batch["labels"]
    listed = labels.masked_fill(labels == -100, tokenizer.pad_token_id).index_fill(1, torch.tensor([0]), start)
    assert lesson.model.rank_answers(**asked, answer_ids=listed).answers[:, 0].tolist() == list(range(ROWS))


@every(CHOOSING)
def test_classes(head, tmp_path):
    second = ["image_second"] if head.takes("pixel_values_second") else []
    lesson = Lesson(head, tmp_path, ClassCollator, "image", *second, "text", "label")
    assert lesson.after < 0.02 < lesson.before / 10
    labels = lesson.batch.pop("labels")
    assert torch.equal(lesson.model(**lesson.batch).logits.argmax(dim=-1), labels)


@every(PAIRING)
def test_pairs(head, tmp_path):
    """Each text is nearest to its photo and matches it, and of the others does not match the nearest; masked words are
    known, and what is written has no choice."""
    columns = ("image", "captions", "index")
    lesson = Lesson(head, tmp_path, GroupedPairCollator, *columns, texts=2, steps=100, learning_rate=2e-3)
    outputs = lesson.model(**lesson.batch)
    same = 2 + lesson.model.config.queue_size / ROWS  # what shows a photo, in the batch and in the queue, is as near
    assert outputs.loss_itc < 1.02 * math.log(same) and outputs.loss_itm < 0.05
    words = [outputs[name] for name in ("loss_lm", "loss_mlm") if outputs.get(name) is not None]
    assert all(loss < 0.25 for loss in words), words
    assert lesson.after < lesson.before / 2
    texts = {name: lesson.batch[name][::2] for name in ("input_ids", "attention_mask")}
    outputs = lesson.model(lesson.batch["pixel_values"], **texts, return_loss=False)
    near, own = outputs.logits_per_image.detach(), torch.arange(ROWS)
    assert near.argmax(dim=1).tolist() == near.argmax(dim=0).tolist() == own.tolist()
    assert outputs.itm_logits.argmax(dim=-1).tolist() == [1] * ROWS
    wrong = near.fill_diagonal_(-2.0).argmax(dim=0)
    tokens = outputs.vision_model_output.last_hidden_state
    assert lesson.model.match(tokens[wrong], **texts).argmax(dim=-1).tolist() == [0] * ROWS


@every(ASSIGNING)
def test_assignments(head, tmp_path):
    """Which of two photos is a text about, or neither? Of the likeliest pairs, and of most that are drawn."""
    columns = ("image", "captions", "index")
    lesson = Lesson(head, tmp_path, GroupedPairCollator, *columns, texts=4, steps=120, learning_rate=1e-3)
    assert lesson.after < 0.05 < lesson.before / 20
    own = torch.arange(4 * ROWS) // 4
    likeliest = lesson.model(**lesson.batch)
    assert torch.equal(likeliest.logits.argmax(dim=-1), assigned(likeliest.image_pairs, own))
    lesson.model.train()  # in which pairs are drawn
    drawn = [lesson.model(**lesson.batch) for _ in range(10)]
    right = torch.cat([said.logits.argmax(dim=-1) == assigned(said.image_pairs, own) for said in drawn])
    assert right.float().mean() > 0.95
