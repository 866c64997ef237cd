"""Batch norm: a batch counts once however often it is computed, and gradients do not depend on memory layout."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hfvlm.nn.batch_norm import BatchNorm2d


def norm(training: bool) -> BatchNorm2d:
    torch.manual_seed(0)
    layer = BatchNorm2d(6).double().train(training)
    nn.init.normal_(layer.weight)
    layer.running_mean.normal_()
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_gradients_of_maps_turned_into_tokens(training, images):
    """The mean of the tokens is the mean of the map, and so are its gradients."""
    layer, weights = norm(training), torch.randn(images, 6).double()
    pixels = torch.randn(images, 6, 3, 2).double().requires_grad_()
    found = []
    for pool in (lambda x: x.flatten(2).transpose(1, 2).mean(1), lambda x: x.mean((2, 3))):
        layer.zero_grad()
        pixels.grad = None
        (pool(layer(pixels)) * weights).sum().backward()
        found.append((pixels.grad, layer.weight.grad, layer.bias.grad))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(layer.bias.grad, weights.sum(0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repetition_leaves_the_statistics_alone(reentrant):
    plain, repeated = norm(True), norm(True)
    pixels = torch.randn(2, 6, 3, 2).double().requires_grad_()
    plain(pixels).square().sum().backward()
    expected, pixels.grad = pixels.grad, None
    checkpoint(repeated, pixels, use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(pixels.grad, expected)
    for name, value in plain.state_dict().items():
        assert torch.equal(repeated.state_dict()[name], value), name
