"""The language-modelling loss against a loop over tokens."""

import pytest
import torch

from hfvlm.losses.language import next_token_loss


def loop(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, int]:
    """Sum over tokens, one at a time, and their number."""
    total, count = torch.zeros(()), 0
    for row in range(labels.shape[0]):
        for i in range(1, labels.shape[1]):
            if labels[row, i] == -100:
                continue
            log_probs = logits[row, i - 1].float().log_softmax(-1)
            total = total - (1 - smoothing) * log_probs[labels[row, i]] - smoothing * log_probs.mean()
            count += 1
    return total, count


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[0, :3] = labels[2, 4:] = -100
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_it_is_the_mean_over_the_labels_that_are_left(batch, smoothing):
    total, count = loop(*batch, smoothing)
    torch.testing.assert_close(next_token_loss(*batch, smoothing), total / count)


def test_num_items_in_batch_replaces_the_count(batch):
    total, _ = loop(*batch, 0.1)
    torch.testing.assert_close(next_token_loss(*batch, 0.1, num_items_in_batch=40), total / 40)
    torch.testing.assert_close(next_token_loss(*batch, 0.1, num_items_in_batch=torch.tensor(40)), total / 40)


def test_the_first_label_and_the_last_logits_do_not_count(batch):
    logits, labels = batch
    plain = next_token_loss(logits, labels)
    labels[:, 0] = 7
    logits[:, -1] = 1e3
    torch.testing.assert_close(next_token_loss(logits, labels), plain)


def test_half_precision_is_summed_in_full(batch):
    logits, labels = batch
    loss = next_token_loss(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, next_token_loss(logits.bfloat16().float(), labels))


def test_no_label_left_gives_zero_with_a_gradient_path(batch):
    logits, labels = batch
    logits.requires_grad_()
    loss = next_token_loss(logits, torch.full_like(labels, -100), 0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
