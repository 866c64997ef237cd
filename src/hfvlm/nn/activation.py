"""CLIP's quick GELU with fewer passes over memory than its formula has."""

import torch
from torch import nn
from transformers.activations import ACT2FN


SLOPE = 1.702


class QuickGelu(nn.Module):
    """`x * sigmoid(1.702 x)`, of any shape: SiLU between two scalings, all but the first in place.

    Backwards, SiLU has one kernel and keeps one tensor; the formula keeps three.
    """

    def forward(self, hidden: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """
        Args:
            overwrite: `hidden` is the caller's own and may be used as memory.
        """
        if hidden.dtype == torch.float16:  # the scaling could leave its range
            return hidden * torch.sigmoid(SLOPE * hidden)
        scaled = hidden.mul_(SLOPE) if overwrite else hidden * SLOPE
        return nn.functional.silu(scaled, inplace=not torch.is_grad_enabled()).mul_(1 / SLOPE)


def activation(name: str) -> nn.Module:
    """transformers' activation of that name, or the quicker form of the same.

    Raises:
        ValueError: for a name that transformers does not know; names those that it does.
    """
    if name not in ACT2FN:  # looked up here and not in the configuration: to import the table takes seconds
        raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}; got {name!r}")
    return QuickGelu() if name == "quick_gelu" else ACT2FN[name]
