"""Which images a text is assigned to choose from: how often, how likely, and where there is no choice."""

import pytest
import torch

from hfvlm.losses.text_assignment import assigned, assignment_loss, assignment_weights, draw_pairs


def unit(images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(images, 6, generator=generator), dim=-1)


def test_weights_are_probabilities_without_the_images_own():
    embeds = unit(5)
    weights = assignment_weights(embeds)
    expected = (embeds @ embeds.t() / 0.07).softmax(-1).fill_diagonal_(0)
    torch.testing.assert_close(weights, expected)
    same = assignment_weights(embeds, torch.tensor([7, 7, 1, 2, 3]))
    assert same[0, 1] == same[1, 0] == 0 and same[0, 2] > 0


def test_the_cases_come_as_often_as_they_should_and_the_others_by_their_weights():
    torch.manual_seed(0)
    weights = torch.tensor([[0.0, 1.0, 2.0, 5.0]] + [[1.0] * 4] * 3)
    own = torch.zeros(30000, dtype=torch.long)
    pairs, labels = draw_pairs(weights, own, training=True)
    shares = torch.bincount(labels, minlength=3) / len(own)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.01, rtol=0)
    assert torch.equal(assigned(pairs, own), labels)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    others = torch.cat([pairs[labels == 0, 1], pairs[labels == 1, 0], pairs[labels == 2, 0]])
    drawn = torch.bincount(others, minlength=4) / len(own)
    torch.testing.assert_close(drawn, torch.tensor([0, 1 / 8, 2 / 8, 5 / 8]), atol=0.01, rtol=0)


def test_evaluation_repeats_itself_with_all_three_cases():
    weights, own = assignment_weights(unit(4)), torch.arange(4)
    pairs, labels = draw_pairs(weights, own, training=False)
    assert labels.tolist() == [0, 1, 2, 0]
    best = weights.topk(2).indices
    assert pairs.tolist() == [[0, best[0, 0]], [best[1, 0], 1], best[2].tolist(), [3, best[3, 0]]]
    assert all(map(torch.equal, draw_pairs(weights, own, training=False), (pairs, labels)))


@pytest.mark.parametrize("training", [True, False])
def test_one_other_image_is_shown_twice_and_none_is_not_learned(training):
    torch.manual_seed(0)
    pairs, labels = draw_pairs(assignment_weights(unit(2)), torch.arange(2).repeat(20), training)
    neither = pairs[labels == 2]
    assert len(neither) and torch.equal(neither[:, 0], neither[:, 1])
    pairs, labels = draw_pairs(assignment_weights(unit(1)), torch.zeros(3, dtype=torch.long), training)
    assert not pairs.any() and (labels == -100).all()
    logits = torch.randn(3, 3, requires_grad=True)
    loss = assignment_loss(logits, labels)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_what_has_no_class_does_not_count():
    logits = torch.randn(3, 3)
    labels = torch.tensor([1, -100, 2])
    expected = -(logits[0].log_softmax(-1)[1] + logits[2].log_softmax(-1)[2]) / 2
    torch.testing.assert_close(assignment_loss(logits, labels), expected)
