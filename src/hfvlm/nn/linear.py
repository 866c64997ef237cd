"""A linear layer that is quicker on CPU in fp32: on the few rows of a decoding step, and on a tower's many."""

import torch
from torch import nn


# On CPU in fp32, torch's linear reads the weights of few rows on one core, and again for every row or two. The product
# turned round (`weight @ rows.T`), in four blocks of a batch, is up to five times as fast on 1 to 3 rows and is
# still ahead for a vocabulary at 24; in bf16 it gains nothing (examples/benchmarks/linear.py prints the table).
FEW_ROWS = range(1, 25)
BLOCKS = 4
# Above that, oneDNN's product is 1.05 to 1.2 times as fast as the BLAS that torch's linear calls; not for more rows at
# once than these, where it takes another path.
ROWS = 8192


def onednn_is_there() -> bool:
    """Whether this build of torch has oneDNN's linear, which torch's compiler calls too."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONEDNN = onednn_is_there()


def turned_round(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`rows @ weight.T + bias` with the rows as columns: `[rows, in]` -> `[rows, out]`."""
    outputs, inputs = weight.shape
    blocks = BLOCKS if outputs % BLOCKS == 0 else 1
    weight, columns = weight.view(blocks, -1, inputs), rows.t().expand(blocks, -1, -1)
    if bias is None:
        columns = torch.bmm(weight, columns)
    else:
        columns = torch.baddbmm(bias.view(blocks, -1, 1), weight, columns)
    return columns.flatten(0, 1).t().contiguous()


def by_onednn(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`rows @ weight.T + bias` by oneDNN: `[rows, in]` -> `[rows, out]`."""
    product = torch.ops.mkldnn._linear_pointwise
    if len(rows) <= ROWS:
        return product(rows, weight, bias, "none", [], "")
    outputs = rows.new_empty(len(rows), len(weight))
    parts = -(-len(rows) // ROWS)
    for part, place in zip(rows.chunk(parts), outputs.chunk(parts), strict=True):
        place.copy_(product(part, weight, bias, "none", [], ""))
    return outputs


def _is_watched() -> bool:
    """Whether a dispatch mode (`FlopCounterMode`, selective checkpointing) sees the operators: it knows torch's."""
    return torch._C._len_torch_dispatch_stack() > 0


class _WithGradients(torch.autograd.Function):
    """`by_onednn`, and its gradients by the same kernel."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        return by_onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        # gradients of gradients are torch's to find; so many terms a sum are no gain
        own = not torch.is_grad_enabled() and len(rows) <= ROWS and not _is_watched()
        product = by_onednn if own else nn.functional.linear
        return (
            product(gradient, weight.t(), None) if for_rows else None,
            product(gradient.t(), rows.t(), None) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether this is an fp32 tensor of torch's own class on CPU (offloaded weights are on the meta device)."""
    return (
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and type(tensor) in (torch.Tensor, nn.Parameter)
    )


def _may_choose(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether these are plain tensors, and nobody but autograd looks on as they are multiplied."""
    return (
        _is_plain(inputs)
        and _is_plain(weight)
        and (bias is None or _is_plain(bias))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not _is_watched()
        and inputs.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
    )


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`inputs @ weight.T + bias` by the product that is fastest for the rows; equal up to the order of summation.

    Args:
        inputs: `[..., in]`; `weight`: `[out, in]`; `bias`: `[out]`.
    """
    if _may_choose(inputs, weight, bias):
        outputs, width = weight.shape
        rows = inputs.reshape(-1, width)
        product = None
        if len(rows) in FEW_ROWS:
            product = None if torch.is_grad_enabled() else turned_round
        elif len(rows) and ONEDNN and torch._C._get_mkldnn_enabled():
            if not torch.is_grad_enabled():
                product = by_onednn
            elif not (torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0):
                product = _WithGradients.apply
        if product is not None:
            return product(rows.contiguous(), weight, bias).view(*inputs.shape[:-1], outputs)
    return nn.functional.linear(inputs, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by the function `linear`.

    Tools that ask for `type(module) is nn.Linear` (torch.ao's dynamic quantisation) pass it over.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        return linear(inputs, self.weight, self.bias)
