"""The perceptron against its formula, whole and in parts, and quick GELU against its own."""

import pytest
import torch
from transformers.activations import ACT2FN

from hfvlm.nn import mlp as mlp_module
from hfvlm.nn.activation import QuickGelu, activation
from hfvlm.nn.mlp import Mlp


def formula(module: Mlp, rows: torch.Tensor, act: str) -> torch.Tensor:
    hidden = torch.nn.functional.linear(rows, module.fc1.weight, module.fc1.bias)
    return torch.nn.functional.linear(ACT2FN[act](hidden), module.fc2.weight, module.fc2.bias)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_equal_the_whole(monkeypatch, act, dtype):
    module, rows = Mlp(6, 10, act).to(dtype), torch.randn(2, 35, 6, dtype=dtype)
    before = rows.clone()
    monkeypatch.setattr(mlp_module, "ROWS", 32)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-2}
    expected = formula(module, rows, act)
    torch.testing.assert_close(module(rows), expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(module(rows), expected.detach(), **tolerance)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("length", [5, 50])
def test_gradients_are_the_formulas(act, length):
    module, rows = Mlp(6, 10, act), torch.randn(2, length, 6, requires_grad=True)
    inputs, weights = (rows, *module.parameters()), torch.randn(2, length, 6)
    both = [
        torch.autograd.grad((outputs * weights).sum(), inputs)
        for outputs in (module(rows), formula(module, rows, act))
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-6)


def test_who_listens_to_a_layer_hears_all_rows_once_and_unchanged(monkeypatch):
    monkeypatch.setattr(mlp_module, "ROWS", 4)
    module, rows, heard = Mlp(6, 10, "quick_gelu"), torch.randn(9, 6), []
    module.fc1.register_forward_hook(lambda layer, args, output: heard.append(output))
    with torch.no_grad():
        module(rows)
        assert len(heard) == 1
        torch.testing.assert_close(heard[0], module.fc1(rows))


def test_a_layer_that_was_put_in_keeps_its_output(monkeypatch):
    """An adapter or a quantised layer may hand out what it still holds."""
    module = Mlp(6, 6, "quick_gelu")
    module.fc1 = torch.nn.Identity()
    rows = torch.randn(3, 6)
    before = rows.clone()
    with torch.no_grad():
        module(rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_quick_gelu_is_its_formula(dtype):
    values = torch.cat([torch.randn(100) * 4, torch.tensor([0.0, 60000.0, -60000.0])]).to(dtype)
    expected = values.double() * torch.sigmoid(1.702 * values.double())
    before = values.clone()
    tolerance = 2 * torch.finfo(dtype).eps
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(QuickGelu()(values).double(), expected, rtol=4 * tolerance, atol=2 * tolerance)
    assert torch.equal(values, before)


def test_quick_gelu_has_first_and_second_derivatives():
    values = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGelu(), values) and torch.autograd.gradgradcheck(QuickGelu(), values)


def test_other_activations_are_those_of_transformers():
    assert activation("gelu") is not None and type(activation("gelu")) is type(ACT2FN["gelu"])


@pytest.mark.parametrize("listener", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("layer", ["fc1", "act", "fc2"])
def test_who_listens_backwards_hears_the_gradient(listener, layer):
    module, rows, heard = Mlp(6, 10, "quick_gelu"), torch.randn(9, 6), []
    getattr(getattr(module, layer), listener)(lambda *_: heard.append(1))
    module(rows).sum().backward()
    assert heard == [1]


@pytest.mark.parametrize("everywhere", [False, True])
def test_who_listens_before_the_activation_keeps_what_it_heard(everywhere):
    module, rows, heard = Mlp(6, 10, "quick_gelu"), torch.randn(9, 6), []

    def listen(layer, args):
        if layer is module.act:
            heard.append(args[0])

    register = torch.nn.modules.module.register_module_forward_pre_hook if everywhere else None
    handle = (register or module.act.register_forward_pre_hook)(listen)
    with torch.no_grad():
        module(rows)
        handle.remove()
        torch.testing.assert_close(heard[0], module.fc1(rows))


def test_what_is_between_the_layers_is_overwritten_when_nobody_looks(monkeypatch):
    module, rows, given = Mlp(6, 10, "quick_gelu"), torch.randn(9, 6), []
    forward = QuickGelu.forward
    monkeypatch.setattr(
        QuickGelu, "forward", lambda *args, overwrite=False: given.append(overwrite) or forward(*args, overwrite)
    )
    module(rows)
    with torch.no_grad():
        module(rows)
    assert given == [False, True]
