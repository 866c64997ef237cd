"""Features of pairs, for the tests of losses."""

import torch
from torch.nn.functional import normalize


def pairs(rows: int, dim: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Images and texts `[rows, dim]` of length 1, each pair somewhat alike."""
    draw = torch.Generator().manual_seed(seed)
    images = normalize(torch.randn(rows, dim, generator=draw, dtype=dtype), dim=1)
    noise = torch.randn(rows, dim, generator=draw, dtype=dtype)
    return images, normalize(images + 0.3 * noise, dim=1)


def loss_and_gradients(loss, *tensors: torch.Tensor, **options) -> list[torch.Tensor]:
    """The value of `loss(*tensors, **options)` and its gradient by each tensor."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*tensors, **options)
    return [value.detach(), *torch.autograd.grad(value, tensors)]
