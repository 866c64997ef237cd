"""Recall of retrieval as an `evaluate.Metric`."""

from collections.abc import Sequence
from typing import Any

import evaluate
import torch
from datasets import Features, List, Value

from hfvlm.evaluation.base import Metric
from hfvlm.evaluation.retrieval import recall_at


class RetrievalRecall(Metric):
    """Recall at `k` both ways, 0 to 1, as `recall_at` computes it: a row is a text.

    ```python
    >>> metric("retrieval_recall").compute(predictions=similarity.T, references=image_of_text, ks=(1, 5))
    ```

    Predictions are a text's similarities to all images, `[texts, images]`; a reference is the number of its image. All
    similarities are held: for many, `recall_of_embeddings` does without.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Recall at k of images by text and of texts by image.",
            citation="",
            inputs_description="predictions: a text's similarity to each image; references: the number of its image.",
            features=Features({"predictions": List(Value("float32")), "references": Value("int64")}),
        )

    def _check_row(self, prediction: Any, reference: Any, row: str) -> None:
        if not hasattr(prediction, "__len__") or isinstance(prediction, (str, bytes)):
            raise ValueError(
                f"predictions{row} must be the similarities to all images, got {type(prediction).__name__}"
            )
        try:
            images = torch.as_tensor(prediction, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"predictions{row} must be numbers: {error}") from error
        if images.ndim != 1 or not len(images):
            raise ValueError(f"predictions{row} must be [images] numbers, got {list(images.shape)}")
        number = reference.item() if hasattr(reference, "item") else reference
        if not isinstance(number, int) or not 0 <= number < len(images):
            raise ValueError(f"references{row} must be one of the {len(images)} images, from 0; got {number!r}")

    def _compute(
        self, predictions: list[list[float]], references: list[int], ks: Sequence[int] = (1, 5, 10)
    ) -> dict[str, float]:
        lengths = sorted({len(row) for row in predictions})
        if len(lengths) > 1:
            raise ValueError(f"every text needs a similarity to every image; rows have {lengths[0]} to {lengths[-1]}")
        return recall_at(torch.tensor(predictions).t(), references, ks)
