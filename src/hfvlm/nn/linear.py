"""A linear layer that is quick on a few rows too: the decoding steps of a caption, or of a few beams."""

import torch
from torch import nn


# On CPU in fp32, torch's linear reads the weights of few rows on one core, and again for every row or two. The product
# turned round (`weight @ rows.T`), in four blocks of a batch, is up to five times as fast on 1 to 3 rows and is
# still ahead for a vocabulary at 24; in bf16 it gains nothing (examples/benchmarks/linear.py prints the table).
FEW_ROWS = range(1, 25)
BLOCKS = 4


class Linear(nn.Linear):
    """`nn.Linear`, with the product turned round where that is faster; equal up to the order of summation.

    Tools that ask for `type(module) is nn.Linear` (torch.ao's dynamic quantisation) pass it over.
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
            and self.weight.is_contiguous()
        ):
            blocks = BLOCKS if self.out_features % BLOCKS == 0 else 1
            weight = self.weight.view(blocks, -1, self.in_features)
            rows = inputs.reshape(-1, self.in_features).t().expand(blocks, -1, -1)
            if self.bias is None:
                columns = torch.bmm(weight, rows)
            else:
                columns = torch.baddbmm(self.bias.view(blocks, -1, 1), weight, rows)
            return columns.flatten(0, 1).t().contiguous().view(*inputs.shape[:-1], self.out_features)
        return super().forward(inputs)
