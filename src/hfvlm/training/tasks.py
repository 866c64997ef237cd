"""What can be learned: a row a task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hfvlm.data.captions import CaptionCollator, GroupedPairCollator
from hfvlm.data.classes import ClassCollator
from hfvlm.data.questions import AnswerCollator, commonest_answer
from hfvlm.losses.text_assignment import assigned
from hfvlm.processing import reading_options


@dataclass(frozen=True)
class Column:
    """A column that a task reads.

    Args:
        holds: "image"; "texts", a list of them, of which some are drawn (a single one is a list of one); "answers",
            the same, of which all are learned; "text"; "class", its number or its name; "weight", a number above 0;
            "any", as it is.
        names: what it is called where the recipe does not say.
        required: a file must have it.
    """

    holds: str
    names: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        auto: the Auto class of the head.
        reads: what the head's `forward` must take.
        collator: `(processor, max_length)` -> what makes a batch of items.
        columns: of a row of data, by the names that items have them by.
        predict: `(model, processor, items, max_length)` -> a text an item, and what it should be.
        one_text: an item has one text, never several.
    """

    auto: str
    reads: tuple[str, ...]
    collator: Callable[[Any, int | None], Callable[[list[dict]], dict[str, Any]]]
    columns: dict[str, Column]
    predict: Callable[[Any, Any, list[dict], int | None], list[tuple[str, str]]]
    one_text: bool = False


def write_captions(model: Any, processor: Any, items: list[dict], max_length: int | None) -> list[tuple[str, str]]:
    """A caption of each image, the likeliest word by word, and the first that it has."""
    inputs = processor(images=[item["image"] for item in items]).to(model.device)
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=max_length or 32)
    return [(text, item["captions"][0]) for text, item in zip(processor.batch_decode(ids), items, strict=True)]


def nearest_texts(model: Any, processor: Any, items: list[dict], max_length: int | None) -> list[tuple[str, str]]:
    """The text of all the items' that is nearest to each image, and its own."""
    texts = [item["captions"][0] for item in items]
    batch = GroupedPairCollator(processor, max_length)([{**item, "captions": item["captions"][:1]} for item in items])
    names = ("pixel_values", "input_ids", "attention_mask")
    inputs = {name: batch[name].to(model.device) for name in names}
    similarities = model(**inputs, return_loss=False).logits_per_image
    return [(texts[best], text) for best, text in zip(similarities.argmax(dim=-1).tolist(), texts, strict=True)]


def caption_collator(processor: Any, max_length: int | None) -> CaptionCollator:
    """`CaptionCollator`, up to 32 tokens unless the recipe says otherwise."""
    return CaptionCollator(processor, max_length or 32)


def likeliest_classes(model: Any, processor: Any, items: list[dict], max_length: int | None) -> list[tuple[str, str]]:
    """The class of each item that the model takes for the likeliest, and its own, by name."""
    batch = ClassCollator(processor, max_length)(items)
    chosen = model(**{name: value.to(model.device) for name, value in batch.items()}).logits.argmax(dim=-1).tolist()
    names = model.config.id2label
    return [(names[said], names[item["label"]]) for said, item in zip(chosen, items, strict=True)]


def write_answers(model: Any, processor: Any, items: list[dict], max_length: int | None) -> list[tuple[str, str]]:
    """An answer to each question, the likeliest word by word, and what most people answered."""
    images, questions = [item["image"] for item in items], [item["question"] for item in items]
    inputs = processor(images=images, text=questions, max_length=max_length, **reading_options(processor))
    ids = model.generate(**inputs.to(model.device), do_sample=False, max_new_tokens=10)
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [(text.strip(), commonest_answer(item["answers"])) for text, item in zip(texts, items, strict=True)]


def assigned_images(model: Any, processor: Any, items: list[dict], max_length: int | None) -> list[tuple[str, str]]:
    """Which of two images the model takes each item's first text to be about, and which it is; the others are the most
    similar of the items'."""
    batch = GroupedPairCollator(processor, max_length)([{**item, "captions": item["captions"][:1]} for item in items])
    names = ("pixel_values", "input_ids", "attention_mask", "image_ids")
    outputs = model(**{name: batch[name].to(model.device) for name in names}, return_loss=True)
    own = torch.arange(len(items), device=outputs.logits.device)
    right = assigned(outputs.image_pairs, own).tolist()
    names = ("the first image", "the second image", "neither image")
    return [(names[said], names[label]) for said, label in zip(outputs.logits.argmax(dim=-1).tolist(), right)]


PHOTOS = {
    "image": Column("image", ("image",)),
    "captions": Column("texts", ("captions", "caption", "text")),
    "image_id": Column("any", ("image_id",), required=False),
}
JUDGED = {
    "image": Column("image", ("image",)),
    "text": Column("text", ("text", "sentence")),
    "label": Column("class", ("label",)),
}
TWO_JUDGED = {"image": JUDGED["image"], "image_second": Column("image", ("image_second",)), **JUDGED}
ASKED = {
    "image": Column("image", ("image",)),
    "question": Column("text", ("question",)),
    "answers": Column("answers", ("answers", "answer")),
    "weight": Column("weight", ("weight",), required=False),
}
CLASSES = ("pixel_values", "input_ids", "attention_mask", "labels")
PAIRS = ("pixel_values", "input_ids", "attention_mask", "image_ids", "return_loss")

TASKS = {
    "captioning": Task(
        "AutoModelForImageTextToText",
        ("pixel_values", "input_ids", "labels"),
        caption_collator,
        PHOTOS,
        write_captions,
    ),
    "contrastive": Task("AutoModel", PAIRS, GroupedPairCollator, PHOTOS, nearest_texts, one_text=True),
    "entailment": Task("AutoModelForVisualEntailment", CLASSES, ClassCollator, JUDGED, likeliest_classes),
    "pretraining": Task("AutoModelForPreTraining", PAIRS, GroupedPairCollator, PHOTOS, nearest_texts),
    "retrieval": Task("AutoModelForImageTextRetrieval", PAIRS, GroupedPairCollator, PHOTOS, nearest_texts),
    "text-assignment": Task(
        "AutoModelForTextAssignment", (*PAIRS, "image_pairs"), GroupedPairCollator, PHOTOS, assigned_images
    ),
    "visual-question-answering": Task(
        "AutoModelForVisualQuestionAnswering",
        ("pixel_values", "input_ids", "attention_mask", "labels", "answer_counts", "answer_weights"),
        AnswerCollator,
        ASKED,
        write_answers,
    ),
    "visual-reasoning": Task(
        "AutoModelForVisualReasoning",
        (*CLASSES, "pixel_values_second"),
        ClassCollator,
        TWO_JUDGED,
        likeliest_classes,
    ),
}


def predictions(
    task: Task, model: Any, processor: Any, items: list[dict], max_length: int | None
) -> list[tuple[str, str]]:
    """What a model in training says of some items; the model is as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return task.predict(model, processor, items, max_length)
    finally:
        model.train(training)
