"""Whether anybody looks at what a layer is given and gives: where nobody does, its output may be written over."""

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def unheard(*layers: nn.Module) -> bool:
    """Whether no hook of any kind, forward or backward, is on these layers or on all modules."""
    return not (
        _has_any_global_hook()
        or any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in layers
        )
    )


def may_overwrite(*layers: nn.Module) -> bool:
    """Whether what these layers give may be used as memory: no gradients, no hooks, and no compiler, which decides
    that itself."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and unheard(*layers)
