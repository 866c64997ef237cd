"""Hard negatives are never of the same image, and evaluation repeats itself."""

import torch

from hfvlm.losses.matching import choose_negatives, matching_labels, matching_loss, negative_weights


def test_a_row_of_the_same_image_is_never_a_negative():
    similarity = torch.randn(4, 6) * 3
    ids = torch.tensor([7, 8, 7, 9, 8, 7])
    weights = negative_weights(similarity, torch.arange(4), ids, offset=0.1)
    same = ids[:4, None] == ids
    assert (weights[same] == 0).all() and (weights[~same] > 0).all()
    for _ in range(20):
        drawn = choose_negatives(weights, training=True)
        assert (ids[drawn] != ids[:4]).all()


def test_without_ids_only_the_partner_is_left_out():
    weights = negative_weights(torch.zeros(2, 4), torch.tensor([2, 3]))
    assert weights.tolist() == [[0.25, 0.25, 0, 0.25], [0.25, 0.25, 0.25, 0]]


def test_where_all_weight_falls_on_the_own_image_the_others_are_alike():
    weights = negative_weights(torch.tensor([[1000.0, 0.0, 0.0]]), torch.tensor([0]))
    assert weights.tolist() == [[0, 1, 1]]


def test_one_image_alone_has_no_negatives():
    weights = negative_weights(torch.randn(3, 3), torch.arange(3), torch.tensor([5, 5, 5]))
    assert choose_negatives(weights, training=True) is None
    assert choose_negatives(negative_weights(torch.zeros(1, 1), torch.tensor([0])), training=False) is None


def test_evaluation_takes_the_likeliest():
    weights = negative_weights(torch.tensor([[5.0, 1.0, 2.0], [0.0, 3.0, -1.0]]), torch.arange(2))
    assert choose_negatives(weights, training=False).tolist() == [2, 0]


def test_the_loss_is_a_mean_over_right_and_wrong_pairs():
    logits = torch.randn(6, 2)
    assert matching_labels(2, logits.device).tolist() == [1, 1, 0, 0, 0, 0]
    expected = -torch.cat([logits.log_softmax(-1)[:2, 1], logits.log_softmax(-1)[2:, 0]]).mean()
    torch.testing.assert_close(matching_loss(logits, 1 / 6), expected)
