"""Batch normalisation that counts each batch once, also where gradient checkpointing computes a layer again, and
whose gradients are right for a single image."""

import torch
from torch import nn


def recomputing() -> bool:
    """Whether the code that asks runs inside a backward pass: there, a forward pass is a repetition."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, but a repetition for the backward pass leaves the running statistics alone.

    Every kind of checkpointing (transformers', torch's, FSDP's) computes the layer again during backward, and would
    let each batch into the statistics twice.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, h, w]` in and out."""
        if self.training and self.track_running_stats and recomputing():
            statistics = self.running_mean.clone(), self.running_var.clone()  # checkpointing compares what is saved
            outputs = nn.functional.batch_norm(
                inputs, *statistics, self.weight, self.bias, training=True, eps=self.eps
            )
        else:
            outputs = super().forward(inputs)
        if not torch.compiler.is_compiling() and outputs.requires_grad and len(outputs) == 1:
            # torch's kernel on CPU (2.13) takes the gradient of a batch of one for contiguous where it is laid out
            # channels last, as turning a map into tokens leaves it, and gives wrong numbers
            outputs.register_hook(torch.Tensor.contiguous)
        return outputs
