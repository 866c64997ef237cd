"""The two-layer perceptron of a transformer block."""

import torch
from torch import nn

from hfvlm.nn.activation import QuickGelu, activation
from hfvlm.nn.hooks import may_overwrite, unheard
from hfvlm.nn.linear import Linear


# On CPU without gradients, so many rows at a time go through both layers: what lies between the two stays in the
# cache, and in memory that the allocator keeps (larger pieces go back to the system, and cost a page fault a page).
ROWS = 1024


class Mlp(nn.Module):
    """`fc2(act(fc1(x)))`, `[..., dim]` -> `[..., dim]`."""

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu"):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = activation(act)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():  # numel() would fix an exported size
            return self._both(hidden_states)
        shape = hidden_states.shape
        rows = shape[:-1].numel()
        if rows <= ROWS or not self._in_parts(hidden_states):
            return self._both(hidden_states)
        outputs = None
        for start, part in zip(range(0, rows, ROWS), hidden_states.reshape(rows, -1).split(ROWS)):
            part = self._both(part)
            if outputs is None:
                outputs = part.new_empty(rows, part.shape[-1])
            outputs[start : start + len(part)] = part
        return outputs.view(*shape[:-1], -1)

    def _in_parts(self, hidden_states: torch.Tensor) -> bool:
        """Whether rows may go through apart: nobody looks at what the layers are given and give."""
        return (
            hidden_states.device.type == "cpu" and not torch.jit.is_tracing() and unheard(self.fc1, self.act, self.fc2)
        )

    def _both(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        if isinstance(self.act, QuickGelu) and type(self.fc1) is Linear and may_overwrite(self.fc1, self.act):
            hidden_states = self.act(hidden_states, overwrite=True)  # nobody else holds it
        else:
            hidden_states = self.act(hidden_states)
        return self.fc2(hidden_states)
