"""The linear layer equals torch's, whichever way round the product is taken."""

import pytest
import torch

from hfvlm.nn import linear as linear_module
from hfvlm.nn.linear import FEW_ROWS, Linear


@pytest.mark.parametrize("outputs", [5, 8])  # in one block, in four
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (2, 4), (FEW_ROWS[-1],), (FEW_ROWS[-1] + 1,), (0,)])
def test_any_number_of_rows(shape, bias, outputs):
    layer = Linear(7, outputs, bias=bias)
    rows = torch.randn(*shape, 7)
    expected = torch.nn.functional.linear(rows, layer.weight, layer.bias)
    with torch.no_grad():
        result = layer(rows)
    assert result.shape == (*shape, outputs) and result.is_contiguous()
    torch.testing.assert_close(result, expected.detach())
    torch.testing.assert_close(layer(rows), expected)  # with gradients


def test_rows_that_are_not_contiguous():
    layer, rows = Linear(7, 5), torch.randn(7, 3).t()
    with torch.no_grad():
        torch.testing.assert_close(layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias))


def test_bf16_and_autocast_stay_as_torch_has_them():
    layer, rows = Linear(7, 5), torch.randn(3, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16
    layer, rows = layer.bfloat16(), rows.bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [30, 70])  # at once, in parts of unequal length
def test_many_rows_are_cut_up_and_joined(monkeypatch, count, bias):
    monkeypatch.setattr(linear_module, "ROWS", 32)
    layer, rows = Linear(7, 5, bias=bias), torch.randn(2, count // 2, 7)
    with torch.no_grad():
        result = layer(rows)
        torch.testing.assert_close(result, torch.nn.functional.linear(rows, layer.weight, layer.bias))
    assert result.shape == (2, count // 2, 5)


def test_a_build_without_onednn_has_torchs_product(monkeypatch):
    layer, rows = Linear(7, 5), torch.randn(40, 7)
    monkeypatch.setattr(linear_module, "ONEDNN", False)
    with torch.no_grad():
        assert torch.equal(layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias))


@pytest.mark.parametrize("count", [2, 40])
def test_rows_of_another_width_are_refused(count):
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(6, 5)(torch.randn(count, 12))
