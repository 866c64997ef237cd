"""The two-layer perceptron of a transformer block."""

import torch
from torch import nn
from transformers.activations import ACT2FN

from hfvlm.nn.linear import Linear


class Mlp(nn.Module):
    """`fc2(act(fc1(x)))`, `[..., dim]` -> `[..., dim]`."""

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu"):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = ACT2FN[act]
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))
