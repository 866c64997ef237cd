"""Recall: as counted by hand, chunked or not, with ties that do not flatter."""

import pytest
import torch

from hfvlm.evaluation.retrieval import recall_at, recall_of_embeddings


def counted(similarity: torch.Tensor, image_of_text: list[int], k: int) -> tuple[float, float]:
    """Image to text and text to image by sorting, one at a time."""
    images, texts = range(similarity.shape[0]), range(similarity.shape[1])
    hits = [
        any(image_of_text[t] == i for t in similarity[i].sort(descending=True, stable=True)[1][:k]) for i in images
    ]
    found = [image_of_text[t] in similarity[:, t].sort(descending=True, stable=True)[1][:k].tolist() for t in texts]
    return sum(hits) / len(hits), sum(found) / len(found)


@pytest.mark.parametrize("levels", [None, 3])
def test_as_counted_by_hand(levels):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        image_of_text = [*range(12), *torch.randint(12, (30,), generator=generator).tolist()]
        similarity = torch.randn(12, 42, generator=generator)
        if levels:  # many ties
            similarity = (similarity * levels / 3).round()
        recall = recall_at(similarity, image_of_text, ks=(1, 5, 10, 100))
        for k in (1, 5, 10):
            expected = counted(similarity, image_of_text, k)
            assert (recall[f"image_to_text_r@{k}"], recall[f"text_to_image_r@{k}"]) == pytest.approx(expected)
        assert recall["image_to_text_r@100"] == recall["text_to_image_r@100"] == 1.0


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunked_as_whole(chunk_size):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(20, 6, generator=generator), torch.randn(60, 6, generator=generator)
    image_of_text = torch.arange(60) % 20
    texts += images[image_of_text]
    chunked = recall_of_embeddings(images, texts, image_of_text, chunk_size=chunk_size)
    assert chunked == recall_at(images @ texts.t(), image_of_text)
    assert 0.1 < chunked["text_to_image_r@1"] < 0.9
    assert list(chunked) == [f"{way}_r@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def test_a_model_that_finds_all_alike_is_no_better_than_chance():
    recall = recall_at(torch.zeros(10, 50), [i // 5 for i in range(50)])
    assert recall["text_to_image_r@1"] == recall["image_to_text_r@1"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), [0, 1, 2]), r"similarity must be \[images, texts\]"),
        ((torch.zeros(2, 3), [0, 1]), "for each of the 3 texts"),
        ((torch.zeros(2, 3), [0, 1, 2]), "0 to 1"),
        ((torch.zeros(2, 3), [0, 1, -1]), "0 to 1"),
        ((torch.zeros(3, 3), [0, 1, 1]), "1 of 3 images have no text"),
        ((torch.zeros(0, 0), []), "nothing to find"),
        ((torch.full((1, 1), torch.nan), [0]), "not finite"),
        ((torch.zeros(1, 1), [0], [0]), "at least 1 each"),
        ((torch.zeros(1, 1), [0], []), "at least 1 each"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        recall_at(*arguments)


def test_chunks_of_nothing():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        recall_of_embeddings(torch.ones(1, 2), torch.ones(1, 2), [0], chunk_size=0)
