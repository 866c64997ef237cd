"""Which rows of a batch read which memory, in any order and in any numbers."""

import torch


class RowGroups:
    """Rows sorted by the memory that they read, each memory's padded to as many as the one with most has.

    So each memory's keys and values serve all of its rows without being copied. The padding repeats the first row;
    what is computed for it is never collected.

    Args:
        index: `[rows]`, long: the memory of each row.
        memories: how many memories there are.

    Raises:
        ValueError: an index beyond the memories.
    """

    def __init__(self, index: torch.Tensor, memories: int):
        if index.ndim != 1 or index.numel() == 0:
            raise ValueError(f"memory_index must be [rows], got {list(index.shape)}")
        low, high = index.min().item(), index.max().item()
        if low < 0 or high >= memories:
            raise ValueError(f"memory_index must be between 0 and {memories - 1}, got {low} to {high}")
        counts = torch.bincount(index, minlength=memories)
        self.size = int(counts.max())
        order = index.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        numbers = torch.arange(len(index), device=index.device)
        #: `[rows]`, the slot of each row among `memories * size`
        self.place = torch.empty_like(index)
        self.place[order] = index[order] * self.size + numbers - starts[index[order]]
        #: `[memories * size]`, the row in each slot
        self.source = torch.zeros(memories * self.size, dtype=torch.long, device=index.device)
        self.source[self.place] = numbers

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, ...]` -> `[memories * size, ...]`."""
        return rows[self.source]

    def collect(self, slots: torch.Tensor) -> torch.Tensor:
        """`[memories * size, ...]` -> `[rows, ...]`."""
        return slots[self.place]
