"""A linear layer that is quick on a few rows too: the decoding steps of a few beams."""

import torch
from torch import nn


# On CPU in fp32, `weight @ rows.T` reads the weights up to 3.5 times as fast as `rows @ weight.T` for so many rows;
# for one row, for more, and in bf16 it gains nothing (examples/benchmarks/linear.py prints the table).
FEW_ROWS = range(2, 25)


class Linear(nn.Linear):
    """`nn.Linear`, with the product turned round where that is faster; equal up to the order of summation.

    Tools that look for `type(module) is nn.Linear`, as torch.ao's dynamic quantisation does, pass it over.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        if (
            inputs.device.type == "cpu"
            and inputs.dtype == self.weight.dtype == torch.float32
            and not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and inputs.numel() // self.in_features in FEW_ROWS
        ):
            rows = inputs.reshape(-1, self.in_features).t()
            if self.bias is None:
                columns = torch.mm(self.weight, rows)
            else:
                columns = torch.addmm(self.bias[:, None], self.weight, rows)
            return columns.t().contiguous().view(*inputs.shape[:-1], self.out_features)
        return super().forward(inputs)
