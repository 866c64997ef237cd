"""Rows that read memories in any order give what each gives with a memory of its own."""

import pytest
import torch
from transformers import PreTrainedConfig

from hfvlm.nn.attention import CrossAttention
from hfvlm.nn.groups import RowGroups


@pytest.mark.parametrize("index", [[0, 1, 2], [2, 0, 0, 2, 1, 0, 2], [1], [0, 0, 0, 0]])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rows_read_the_memory_that_is_named(index, implementation):
    torch.manual_seed(0)
    config = PreTrainedConfig(attn_implementation=implementation)
    layer = CrossAttention(config, 16, 4, memory_dim=12).eval()
    memory, rows = torch.randn(3, 7, 12), torch.randn(len(index), 5, 16)
    mask = torch.zeros(3, 1, 1, 7).masked_fill(torch.arange(7) > 4, -1e9)
    index = torch.tensor(index)
    ours, weights = layer(rows, memory, mask, groups=RowGroups(index, 3))
    theirs, repeated = layer(rows, memory[index], mask[index])
    torch.testing.assert_close(ours, theirs)
    if weights is not None:
        torch.testing.assert_close(weights, repeated)


def test_gradients_are_those_of_repeated_memories():
    torch.manual_seed(0)
    layer = CrossAttention(PreTrainedConfig(attn_implementation="sdpa"), 16, 4, memory_dim=12)
    memory, rows = torch.randn(3, 7, 12, requires_grad=True), torch.randn(6, 5, 16, requires_grad=True)
    index, weight = torch.tensor([2, 0, 0, 2, 1, 0]), torch.randn(6, 5, 16)
    tensors = (memory, rows, *layer.parameters())
    ours = torch.autograd.grad((layer(rows, memory, groups=RowGroups(index, 3))[0] * weight).sum(), tensors)
    theirs = torch.autograd.grad((layer(rows, memory[index])[0] * weight).sum(), tensors)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [[0, 3], [-1, 0], []])
def test_a_memory_that_is_not_there_is_named(index):
    with pytest.raises(ValueError, match="memory_index must be"):
        RowGroups(torch.tensor(index, dtype=torch.long), 3)
