"""Pairs judged together give what each gives alone, and only the nearest are judged."""

import pytest
import torch
from tiny import tiny_model

from hfvlm.reranking import UNRANKED, behind, judge_pairs, rerank_scores


@pytest.fixture(params=["albef", "blip"])
def encoded(request):
    """A model, its image tokens, texts of unlike length, and similarities."""
    model = tiny_model(request.param, "AutoModelForImageTextRetrieval", momentum=None)
    ids = torch.randint(6, 60, (9, 11), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(11) < torch.tensor([3, 11, 5, 7, 4, 9, 11, 3, 6])[:, None]).long()
    with torch.no_grad():
        outputs = model(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), ids * mask, mask)
    return model, outputs.vision_model_output.last_hidden_state, ids * mask, mask, outputs.logits_per_image


@torch.no_grad()
def alone(model, tokens, ids, mask) -> torch.Tensor:
    """Every pair by itself, `[images, texts]`."""
    return torch.stack(
        [
            torch.cat([model.match(tokens[i : i + 1], ids[t : t + 1], mask[t : t + 1])[:, 1] for t in range(len(ids))])
            for i in range(len(tokens))
        ]
    )


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_pairs_in_any_order_are_judged_as_alone(encoded, batch_size):
    model, tokens, ids, mask, _ = encoded
    images, texts = torch.tensor([4, 0, 0, 2, 4, 4, 1, 0]), torch.tensor([1, 8, 0, 2, 7, 1, 3, 3])
    found = judge_pairs(model, tokens, ids, mask, images, texts, batch_size)
    torch.testing.assert_close(found, alone(model, tokens, ids, mask)[images, texts], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_the_nearest_of_each_way_are_scored(encoded, k):
    model, tokens, ids, mask, similarity = encoded
    every = alone(model, tokens, ids, mask) + (similarity if model.rerank_adds_similarity else 0)
    for found, near, expected in zip(
        rerank_scores(model, tokens, ids, mask, similarity, k, batch_size=4),
        (similarity, similarity.t()),
        (every, every.t()),
    ):
        best = near.topk(min(k, near.shape[1]), dim=1).indices
        ranked = torch.zeros_like(near, dtype=torch.bool).scatter(1, best, True)
        assert (found[~ranked] == UNRANKED).all()
        torch.testing.assert_close(found[ranked], expected[ranked], rtol=1e-4, atol=1e-5)


def test_pairs_that_are_not_judged_come_behind_by_similarity(encoded):
    model, tokens, ids, mask, similarity = encoded
    similarity, done = similarity / similarity.abs().max(), []
    tables = rerank_scores(model, tokens, ids, mask, similarity, 2, 3, lambda *numbers: done.append(numbers))
    pairs = int(((tables[0] != UNRANKED) | (tables[1].t() != UNRANKED)).sum())
    assert done[-1] == (pairs, pairs) and done == sorted(done) and len(done) > 3
    for table, near in zip(tables, (similarity, similarity.t())):
        for found, scores, cosines in zip(behind(table, near), table, near):
            judged = cosines.topk(2).indices.tolist()
            others = [place for place in cosines.argsort(descending=True).tolist() if place not in judged]
            judged.sort(key=lambda place: -scores[place])
            assert found.argsort(descending=True).tolist() == judged + others


def test_no_pairs_have_no_scores(encoded):
    none = torch.empty(0, dtype=torch.long)
    assert judge_pairs(*encoded[:4], none, none).shape == (0,)


def test_bad_input_is_named(encoded):
    model, tokens, ids, mask, similarity = encoded
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rerank_scores(model, tokens, ids, mask, similarity, 0)
    with pytest.raises(ValueError, match=r"similarity must be \[5, 9\].*got \[9, 5\]"):
        rerank_scores(model, tokens, ids, mask, similarity.t(), 2)
