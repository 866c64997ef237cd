"""The linear layer equals torch's, whichever way round the product is taken."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [40, 100])  # above `ROWS`, torch's products go back
def test_gradients_of_many_rows(monkeypatch, count, bias):
    monkeypatch.setattr(linear_module, "ROWS", 64)
    layer, rows = Linear(7, 90, bias=bias), torch.randn(2, count // 2, 7, requires_grad=True)
    expected = torch.nn.functional.linear(rows, layer.weight, layer.bias)
    inputs, weights = (rows, *layer.parameters()), torch.randn_like(expected)
    pairs = [torch.autograd.grad((outputs * weights).sum(), inputs) for outputs in (layer(rows), expected)]
    torch.testing.assert_close(*pairs)


def test_gradients_of_gradients_of_many_rows():
    layer, rows = Linear(7, 5), torch.randn(40, 7, requires_grad=True)
    results = []
    for outputs in (layer(rows), torch.nn.functional.linear(rows, layer.weight, layer.bias)):
        (first,) = torch.autograd.grad(outputs.pow(3).sum(), rows, create_graph=True)
        results.append(torch.autograd.grad(first.pow(2).sum(), (rows, layer.weight)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    layer, rows = Linear(7, 5).requires_grad_(False), torch.randn(40, 7, requires_grad=True)
    layer(rows).sum().backward()
    torch.testing.assert_close(rows.grad, layer.weight.sum(0).expand(40, 7))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_transforms_of_functions_and_forward_derivatives():
    layer, rows = Linear(7, 5), torch.randn(40, 7)
    values = dict(layer.named_parameters())

    def loss(values, rows):
        return torch.func.functional_call(layer, values, (rows,)).pow(2).sum()

    gradient = torch.func.grad(loss)(values, rows)["weight"]
    torch.testing.assert_close(gradient, 2 * layer(rows).t() @ rows, rtol=1e-4, atol=1e-4)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, rows.view(2, 20, 7))["weight"]
    torch.testing.assert_close(each.sum(0), gradient, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(rows, torch.ones_like(rows)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, layer.weight.sum(1).expand(40, 5))


def test_what_traces_sees_torchs_linear():
    layer, rows = Linear(7, 5).eval(), torch.randn(40, 7)
    with torch.no_grad():
        graph = str(torch.jit.trace(layer, rows).inlined_graph)
    assert "aten::linear" in graph and "mkldnn" not in graph
    exported = torch.export.export(layer, (rows,))
    assert "mkldnn" not in str(exported.graph)


def test_a_tensor_of_another_class_is_torchs_to_multiply():
    class Watched(torch.Tensor):
        pass

    rows = torch.randn(40, 7).as_subclass(Watched)
    with torch.no_grad():
        assert type(Linear(7, 5)(rows)) is Watched


@pytest.mark.parametrize("count", [2, 40])
def test_weights_that_are_elsewhere_are_torchs_to_refuse(monkeypatch, count):
    def never(*_):
        raise AssertionError("multiplied by weights that are not there")

    monkeypatch.setattr(linear_module, "turned_round", never)
    monkeypatch.setattr(linear_module, "by_onednn", never)
    rows = torch.randn(count, 7)
    weight, bias = torch.randn(5, 7), torch.randn(5)
    for place in ({"weight": weight.to("meta"), "bias": bias}, {"weight": weight, "bias": bias.to("meta")}):
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            linear_module.linear(rows, **place)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("count", [2, 40])
def test_operations_are_counted(count, gradients):
    layer, rows = Linear(7, 5), torch.randn(count, 7, requires_grad=gradients)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(gradients):
        outputs = layer(rows)
    assert counter.get_total_flops() == 2 * count * 7 * 5
    if gradients:
        for result in (outputs, layer(rows)):  # the mode saw it forwards, or sees it only backwards
            with FlopCounterMode(display=False) as counter:
                result.sum().backward()
            assert counter.get_total_flops() == 2 * (2 * count * 7 * 5)


def test_onednn_can_be_switched_off(monkeypatch):
    calls = []
    monkeypatch.setattr(linear_module, "by_onednn", lambda *_: calls.append(1) or torch.zeros(40, 5))
    layer, rows = Linear(7, 5), torch.randn(40, 7)
    with torch.no_grad():
        layer(rows)
        with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
            layer(rows)
    assert len(calls) == linear_module.ONEDNN
