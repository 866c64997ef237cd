"""BERT's masking and its loss, with a teacher or without."""

import torch
from torch import nn

from hfvlm.losses.masked_language import mask_tokens, masked_language_loss


OPTIONS = {"mask_token_id": 4, "vocab_size": 100, "spared": (0, 2)}


def test_of_the_chosen_tokens_eight_in_ten_are_hidden_and_one_is_another_word():
    ids = torch.randint(5, 100, (400, 50), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 40:] = 2, 0
    masked, labels = mask_tokens(ids, probability=0.15, generator=torch.Generator().manual_seed(1), **OPTIONS)
    chosen = labels != -100
    assert not chosen[:, 0].any() and not chosen[:, 40:].any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert abs(chosen[:, 1:40].float().mean() - 0.15) < 0.01
    hidden, kept = masked[chosen] == 4, masked[chosen] == ids[chosen]
    assert abs(hidden.float().mean() - 0.8) < 0.03 and abs(kept.float().mean() - 0.1) < 0.03


def test_the_same_generator_hides_the_same_tokens():
    ids = torch.randint(5, 100, (4, 9))
    one, other = (
        mask_tokens(ids, probability=0.5, generator=torch.Generator().manual_seed(3), **OPTIONS) for _ in range(2)
    )
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_the_teacher_says_alpha_of_the_target():
    logits, teacher, labels = torch.randn(5, 7), torch.randn(5, 7), torch.randint(7, (5,))
    hard = nn.functional.cross_entropy(logits, labels)
    soft = nn.functional.cross_entropy(logits, teacher.softmax(-1))
    torch.testing.assert_close(masked_language_loss(logits, labels), hard)
    torch.testing.assert_close(masked_language_loss(logits, labels, teacher, 0.4), 0.6 * hard + 0.4 * soft)


def test_nothing_hidden_is_no_loss():
    logits = torch.randn(0, 7, requires_grad=True)
    loss = masked_language_loss(logits, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 7)
