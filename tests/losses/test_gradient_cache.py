"""Gradient caching: the big batch's gradients in the memory of a micro-batch."""

import pytest
import torch
from features import pairs
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import normalize

from hfvlm.losses.contrastive import contrastive_loss
from hfvlm.losses.gradient_cache import in_micro_batches
from hfvlm.nn.batch_norm import BatchNorm2d


def gradients(tower: nn.Module, size: int | None) -> list[torch.Tensor]:
    """Of the tower's parameters by a contrastive loss of a batch of 10, in micro-batches or at once."""
    images, texts = (x.float() for x in pairs(10))
    tower.zero_grad()

    def encode(rows: torch.Tensor) -> torch.Tensor:
        return normalize(tower(rows), dim=1)

    features = encode(images) if size is None else in_micro_batches(encode, size, images, module=tower)
    contrastive_loss(features, texts, torch.tensor(5.0)).backward()
    return [parameter.grad.clone() for parameter in tower.parameters()]


@pytest.mark.parametrize("size", [1, 3, 5, 10, 64])
def test_gradients_are_those_of_the_whole_batch(size):
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    torch.testing.assert_close(gradients(tower, size), gradients(tower, None), atol=1e-6, rtol=1e-5)


def test_dropout_draws_the_same_again():
    """Each micro-batch's second pass has its first one's mask: the gradient fits the features that the loss saw."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    rows = torch.randn(6, 16)
    features = in_micro_batches(tower, 2, rows, module=tower)
    drawn = features.detach() != 0
    features.sum().backward()
    by_hand = torch.einsum("no,ni->oi", 2.0 * drawn, rows)
    torch.testing.assert_close(tower[0].weight.grad, by_hand)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm2d])
def test_batch_norm_counts_each_micro_batch_once(norm, momentum):
    def tower() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Unflatten(1, (4, 2, 2)), norm(4, momentum=momentum), nn.Flatten(), nn.Linear(16, 16))

    cached, once = tower(), tower()
    rows = torch.randn(6, 16)
    in_micro_batches(cached, 2, rows, module=cached).square().sum().backward()
    torch.cat([once(part) for part in rows.split(2)]).square().sum().backward()
    assert cached[1].num_batches_tracked.item() == 3
    torch.testing.assert_close(cached.state_dict(), once.state_dict())
    torch.testing.assert_close([p.grad for p in cached.parameters()], [p.grad for p in once.parameters()])
    assert all(value is cached[1]._buffers[name] for name, value in cached[1].named_buffers())


def test_memory_is_that_of_a_micro_batch():
    """How many rows of activations are alive: after the forward pass, and at most."""
    tower = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh())])
    rows, made, most = torch.randn(32, 16), [], 0

    def alive() -> int:
        return sum(count for storage, count in made if not storage.expired())

    def watch(module, inputs, output: torch.Tensor) -> None:
        nonlocal most
        made.append((StorageWeakRef(output.untyped_storage()), len(output)))
        most = max(most, alive())

    for layer in tower[:-1]:  # the last one's outputs are the features, which are kept
        layer.register_forward_hook(watch)

    def activations(size: int) -> tuple[int, int]:
        nonlocal most
        made.clear()
        most = 0
        features = in_micro_batches(tower, size, rows)
        held = alive()
        features.sum().backward()
        return held, most

    held, at_once = activations(32)
    assert held == 7 * 32 <= at_once
    held, in_parts = activations(2)
    assert held == 0
    assert in_parts == at_once / 16


def test_without_gradients_it_is_a_loop():
    calls = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        calls.append(len(part))
        return 2 * part

    rows = torch.randn(7, 3)
    with torch.no_grad():
        features = in_micro_batches(encode, 3, rows)
    assert calls == [3, 3, 1]
    torch.testing.assert_close(features, 2 * rows)


def test_none_is_handed_on():
    seen = []

    def encode(first, nothing, second):
        seen.append(nothing)
        return first + second

    rows = torch.randn(5, 3, requires_grad=True)
    features = in_micro_batches(encode, 2, rows, None, torch.ones(5, 3))
    torch.testing.assert_close(features, rows + 1)
    assert seen == [None] * 3


@pytest.mark.parametrize(
    "message, arguments",
    [
        ("size must be at least 1", (0, torch.ones(2, 2))),
        (r"same number of rows, got \[2, 3\]", (1, torch.ones(2, 2), torch.ones(3, 2))),
        ("same number of rows, got none", (1, None)),
    ],
)
def test_bad_input_is_named(message, arguments):
    with pytest.raises(ValueError, match=message):
        in_micro_batches(lambda *parts: parts[0], *arguments)
