"""Evaluators of tasks: a model's outputs on rows of data, and their scores."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hfvlm.data.classes import ClassCollator
from hfvlm.data.judgements import SECOND, class_numbers
from hfvlm.embedder import Embedder
from hfvlm.evaluation import metric
from hfvlm.evaluation.retrieval import recall_at, recall_of_embeddings
from hfvlm.images import open_image
from hfvlm.reranking import behind, check_judges, rerank_scores


#: is told how many rows are done, of how many; where the nearest are judged again, then how many pairs
Progress = Callable[[int, int], None]

#: tasks whose rows have the class of a text
JUDGING = ("entailment", "reasoning")
#: task -> the metrics that it is scored with, beside recall and accuracy
METRICS_OF = {"captioning": ("bleu", "rouge_l", "cider"), "vqa": ("vqa_accuracy",)}


def check(task: str, rows: Sequence[dict[str, Any]]) -> None:
    """What can be said before there is a model.

    Args:
        task: "captioning", "retrieval", "vqa", "entailment" or "reasoning".
        rows: as its evaluator takes them.

    Raises:
        ImportError: the packages are missing that the task's metrics are made of.
        ValueError: no rows, or one that the task cannot be scored with.
    """
    for name in METRICS_OF.get(task, ()):
        metric(name)
    if task in JUDGING:
        _check_judged(rows, task == "reasoning")
    else:
        _references(rows, "answers" if task == "vqa" else "captions")


def evaluate_captioning(
    pipe: Any, rows: Sequence[dict[str, Any]], batch_size: int = 8, progress: Progress | None = None, **options: Any
) -> dict[str, float]:
    """`bleu_1` to `bleu_4`, `rouge_l` and `cider` of the captions that a model writes.

    Args:
        pipe: an image-to-text pipeline.
        rows: `{"image": ..., "captions": [...]}`, as `read_captions` gives them.
        batch_size: images at a time.
        options: for the pipeline, e.g. `generate_kwargs={"num_beams": 3}`.

    Raises:
        ImageError: an image that cannot be used, by name.
        ValueError: no rows, or one without captions.
    """
    references = _references(rows, "captions")
    captions = []
    outputs = pipe((str(row["image"]) for row in rows), batch_size=batch_size, **options)
    for output in outputs:
        captions.append(output[0]["generated_text"])
        _tell(progress, len(captions), len(rows))
    return score_captions(captions, references)


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`bleu_1` to `bleu_4`, `rouge_l` and `cider` of captions, each against its references.

    Raises:
        ValueError: as the metrics do.
    """
    scores = {}
    for name in METRICS_OF["captioning"]:
        scores.update(metric(name).compute(predictions=captions, references=references))
    return scores


def evaluate_retrieval(
    embedder: Embedder,
    rows: Sequence[dict[str, Any]],
    progress: Progress | None = None,
    ks: Sequence[int] = (1, 5, 10),
    rerank: int | None = None,
) -> dict[str, float]:
    """Recall of images by text and of texts by image, over all captions of all images; see `recall_at`.

    Args:
        embedder: of a two-tower model; with `rerank` of a retrieval head (ALBEF, BLIP).
        rows: `{"image": ..., "captions": [...]}`, as `read_captions` gives them.
        ks: how many results count.
        rerank: so many of the nearest are judged again, each way; the others come behind them, by similarity. The
            images' tokens are kept where the model is: 0.9 MB an image of ViT-B/16 at 384 pixels in bfloat16.

    Raises:
        ImageError: an image that cannot be used, by name.
        ValueError: no rows, or one without captions; `rerank` below 1, or with a model that judges no pairs.
    """
    captions = _references(rows, "captions")
    if rerank is not None:
        if rerank < 1:
            raise ValueError(f"rerank must be at least 1, got {rerank}")
        check_judges(embedder.model)
    texts = [caption for own in captions for caption in own]
    image_of_text = [image for image, own in enumerate(captions) for _ in own]
    total, images, tokens = len(rows) + len(texts), [], None
    for positions, pixels in embedder.loader.stream([row["image"] for row in rows], embedder.batch_size):
        embeds, states = embedder.encode(pixel_values=pixels)
        images.append(embeds)
        if rerank is not None:
            tokens = states.new_empty(len(rows), *states.shape[1:]) if tokens is None else tokens
            tokens[positions] = states
        _tell(progress, positions[-1] + 1, total)
    images, embeds = torch.cat(images), []
    for positions, part in embedder.text_batches(texts):
        embeds.append(part)
        _tell(progress, len(rows) + positions[-1] + 1, total)
    embeds = torch.cat(embeds)
    if rerank is None:
        return recall_of_embeddings(images, embeds, image_of_text, ks)
    device = embedder.model.device
    ids = {name: value.to(device) for name, value in embedder.tokens(texts).items()}
    similarity = (images @ embeds.t()).to(device)
    of_images, of_texts = rerank_scores(
        embedder.model, tokens, ids["input_ids"], ids["attention_mask"], similarity, rerank, progress=progress
    )
    tables = (behind(of_images, similarity), behind(of_texts.t(), similarity))
    of_images, of_texts = (recall_at(table, image_of_text, ks) for table in tables)
    return {name: (of_images if name.startswith("image") else of_texts)[name] for name in of_images}


def evaluate_vqa(
    pipe: Any, rows: Sequence[dict[str, Any]], batch_size: int = 8, progress: Progress | None = None, **options: Any
) -> dict[str, float]:
    """`vqa_accuracy` of a model's best answers; see `answer_accuracy`.

    Args:
        pipe: a visual-question-answering pipeline: a list of `{"image": ..., "question": ...}` to as many lists of
            `{"answer": ..., "score": ...}`, best first.
        rows: `{"image": ..., "question": ..., "answers": [...]}`, as `read_questions` gives them.
        batch_size: questions at a time.
        options: for the pipeline.

    Raises:
        ImageError: an image that cannot be used, by name.
        ValueError: no rows, one without answers, or a question that the pipeline left without one.
    """
    references = _references(rows, "answers")
    answers = []
    for start in range(0, len(rows), batch_size):
        batch = [{"image": str(row["image"]), "question": row["question"]} for row in rows[start : start + batch_size]]
        outputs = pipe(batch, batch_size=batch_size, **options)
        for row, output in zip(batch, outputs, strict=True):
            if not output:
                raise ValueError(f"the pipeline gave no answer to {row['question']!r}, about {row['image']}")
            answers.append(output[0]["answer"])
        _tell(progress, len(answers), len(rows))
    return metric("vqa_accuracy").compute(predictions=answers, references=references)


@torch.inference_mode()
def evaluate_classes(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> dict[str, float]:
    """`accuracy` of the classes that a model takes for the likeliest.

    Args:
        model: a head that chooses the class of an image and a text (entailment), or of two images and a text (visual
            reasoning); it is put into evaluation mode.
        processor: its own.
        rows: `{"image": ..., "text": ..., "label": a number or a name}` with an `"image_second"` where a text is about
            two, as `read_judgements` gives them.
        batch_size: texts at a time.

    Raises:
        ImageError: an image that cannot be used, by name.
        ValueError: no rows, one without a text, an image or a label, or with a label that the model does not know.
    """
    two_images = "pixel_values_second" in inspect.signature(model.forward).parameters
    _check_judged(rows, two_images)
    names = ("image", SECOND) if two_images else ("image",)
    expected = class_numbers([row["label"] for row in rows], model.config.id2label)
    collate, right = ClassCollator(processor), 0
    model.eval()
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        numbers = expected[start : start + batch_size]
        batch = collate(
            [
                {**{name: open_image(row[name]) for name in names}, "text": row["text"], "label": number}
                for row, number in zip(part, numbers)
            ]
        )
        labels = batch.pop("labels")
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }
        right += int((model(**inputs).logits.argmax(dim=-1).cpu() == labels).sum())
        _tell(progress, start + len(part), len(rows))
    return {"accuracy": right / len(rows)}


def _check_judged(rows: Sequence[dict[str, Any]], two_images: bool) -> None:
    """Whether there are rows, and whether each has what is judged."""
    if not len(rows):
        raise ValueError("rows is empty: there is nothing to evaluate")
    needed = ("image", *([SECOND] if two_images else []), "text", "label")
    for number, row in enumerate(rows):
        missing = [name for name in needed if row.get(name) is None]
        if missing:
            raise ValueError(f"rows[{number}] ({row.get('image')}) needs {' and '.join(map(repr, missing))}")


def _references(rows: Sequence[dict[str, Any]], name: str) -> list[list[str]]:
    """The column of what is right."""
    if not len(rows):
        raise ValueError("rows is empty: there is nothing to evaluate")
    for number, row in enumerate(rows):
        texts = row.get(name)
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"rows[{number}] ({row.get('image')}) needs {name!r}, a list of at least one string")
    return [list(row[name]) for row in rows]


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
