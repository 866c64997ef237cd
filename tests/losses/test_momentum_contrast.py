"""Contrast with a momentum teacher: plain formulas, ids, the queue, and bad input."""

import pytest
import torch
from features import pairs
from torch.nn.functional import cross_entropy, one_hot

from hfvlm.losses.momentum_contrast import momentum_contrast, ramp


TEMP = torch.tensor([0.1], dtype=torch.float64)


def test_targets_are_the_partners_and_the_teachers_say():
    images, texts = pairs(4)
    taught_images, taught_texts = pairs(4, seed=1)
    queue = (*pairs(3, seed=2), None)
    alpha = 0.3
    found = momentum_contrast(images, texts, taught_images, taught_texts, TEMP, alpha=alpha, queue=queue)
    keys = torch.cat([taught_texts, queue[1]])
    soft = (taught_images @ keys.T / TEMP).softmax(-1)
    hard = one_hot(torch.arange(4), 7).double()
    targets = alpha * soft + (1 - alpha) * hard
    torch.testing.assert_close(found.targets_per_image, targets)
    torch.testing.assert_close(found.loss_per_image, cross_entropy(images @ keys.T / TEMP, targets))
    keys = torch.cat([taught_images, queue[0]])
    hard_loss = momentum_contrast(images, texts, taught_images, taught_texts, TEMP, queue=queue).loss_per_text
    torch.testing.assert_close(hard_loss, cross_entropy(texts @ keys.T / TEMP, torch.arange(4)))


def test_rows_of_one_image_share_the_target_also_in_the_queue():
    images, texts = pairs(3)
    queue = (*pairs(3, seed=2), torch.tensor([5, -100, 9]))
    ids = torch.tensor([5, 6, 5])
    found = momentum_contrast(images, texts, images, texts, TEMP, queue=queue, image_ids=ids)
    third = 1 / 3
    expected = [[third, 0, third, third, 0, 0], [0, 1, 0, 0, 0, 0], [third, 0, third, third, 0, 0]]
    torch.testing.assert_close(found.targets_per_image, torch.tensor(expected, dtype=torch.float64))
    unnamed = momentum_contrast(images, texts, images, texts, TEMP, queue=(*queue[:2], None), image_ids=ids)
    assert unnamed.targets_per_image[:, 3:].sum() == 0


def test_unknown_images_match_their_partners_alone():
    images, texts = pairs(3)
    queue = (*pairs(2, seed=2), torch.tensor([-100, -100]))
    ids = torch.tensor([-100, -100, 4])
    found = momentum_contrast(images, texts, images, texts, TEMP, queue=queue, image_ids=ids)
    assert torch.equal(found.targets_per_image, one_hot(torch.arange(3), 5).double())


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_is_a_share(alpha):
    rows = pairs(2)
    with pytest.raises(ValueError, match=f"alpha must be between 0 .* and 1, got {alpha}"):
        momentum_contrast(*rows, *rows, TEMP, alpha=alpha)


def test_alpha_grows_on_its_ramp():
    assert [ramp(0.4, step, 4) for step in (0, 1, 4, 9)] == [0.0, 0.1, 0.4, 0.4]
    assert ramp(0.4, 0, 0) == 0.4
