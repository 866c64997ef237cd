"""A queue of features of earlier batches, as further negatives: Momentum Contrast, https://arxiv.org/abs/1911.05722."""

import torch
from torch import nn
from transformers import initialization as init

from hfvlm.losses.gather import gather, row_counts
from hfvlm.losses.matches import UNKNOWN


class NegativeQueue(nn.Module):
    """The last features of all processes, the oldest overwritten first; saved with the model.

    It starts with random directions. A model that owns one calls `reset_parameters` in its `_init_weights`, which
    leaves loaded contents alone.

    Args:
        size: rows that it holds; any number, whatever the batch.
        dim: numbers a row.
        with_ids: keep each row's id, too (-100: not known, as at the start).
    """

    features: torch.Tensor
    ids: torch.Tensor | None
    pointer: torch.Tensor

    def __init__(self, size: int, dim: int, with_ids: bool = False):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"size and dim must be at least 1, got {size} and {dim}")
        self.register_buffer("features", torch.empty(size, dim))
        self.register_buffer("ids", torch.empty(size, dtype=torch.long) if with_ids else None)
        self.register_buffer("pointer", torch.empty(1, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random features of length 1, no ids, and the first row as the next to be written."""
        init.copy_(self.features, nn.functional.normalize(torch.randn_like(self.features), dim=1))
        if self.ids is not None:
            init.constant_(self.ids, UNKNOWN)
        init.zeros_(self.pointer)

    def __len__(self) -> int:
        return len(self.features)

    @torch.no_grad()
    def push(self, features: torch.Tensor, ids: torch.Tensor | None = None) -> None:
        """Takes in the rows of all processes, in the order of their ranks; of more than fit, the last.

        The rows are overwritten in place: what is still to be differentiated must have a copy (`torch.cat` makes one).

        Args:
            features: `[n, dim]` of this process; as many as it likes.
            ids: `[n]`, if the queue keeps them; left out: not known.

        Raises:
            ValueError: features of another size, ids of another number of rows, or ids where none are kept.
        """
        size, dim = self.features.shape
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(f"features must be [n, {dim}], got {list(features.shape)}")
        if ids is not None and self.ids is None:
            raise ValueError("this queue keeps no ids: make it with with_ids=True")
        if ids is not None and ids.shape != features.shape[:1]:
            raise ValueError(f"ids must be [{len(features)}], one a row, got {list(ids.shape)}")
        counts = row_counts(len(features), features.device)
        rows = gather(features, with_grad=False, counts=counts)[-size:].to(self.features)
        start = self.pointer + max(sum(counts) - size, 0)
        places = (start + torch.arange(len(rows), device=start.device)) % size
        self.features[places] = rows
        if self.ids is not None:
            ids = features.new_full((len(features),), UNKNOWN, dtype=torch.long) if ids is None else ids
            self.ids[places] = gather(ids, with_grad=False, counts=counts)[-size:].to(self.ids)
        self.pointer.copy_((self.pointer + sum(counts)) % size)
