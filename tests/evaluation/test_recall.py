"""Recall as a metric: that of `recall_at`."""

import pytest
import torch

from hfvlm.evaluation import metric
from hfvlm.evaluation.retrieval import recall_at


SIMILARITY = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))  # [images, texts]
IMAGE_OF_TEXT = [0, 1, 2, 3, 0, 1, 1]


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.clone])
def test_as_recall_at(kind):
    scores = metric("retrieval_recall").compute(predictions=kind(SIMILARITY.t()), references=IMAGE_OF_TEXT, ks=(1, 2))
    assert scores == recall_at(SIMILARITY, IMAGE_OF_TEXT, (1, 2))


def test_references_may_be_a_tensor():
    scores = metric("retrieval_recall").compute(predictions=torch.eye(2), references=torch.tensor([0, 1]))
    assert scores["text_to_image_r@1"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "are empty"),
        ([[1.0, 0.0]], [0, 1], "1 predictions and 2 references"),
        ([["a", "b"]], [0], r"predictions\[0\] must be numbers"),
        ([0.5], [0], r"predictions\[0\] must be the similarities to all images, got float"),
        ([[[1.0]]], [0], r"predictions\[0\] must be \[images\] numbers, got \[1, 1\]"),
        ([[1.0, 0.0]], [2], r"references\[0\] must be one of the 2 images, from 0; got 2"),
        ([[1.0, 0.0]], ["0"], r"references\[0\] must be one of the 2 images"),
        ([[1.0, 0.0], [1.0]], [0, 0], "rows have 1 to 2"),
        ([[1.0, 0.0]], [0], "1 of 2 images have no text"),
    ],
)
def test_bad_input(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric("retrieval_recall").compute(predictions=predictions, references=references)
