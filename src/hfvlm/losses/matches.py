"""Which keys a row shall match: its own partner, all that show the same image, or a given distribution."""

from dataclasses import dataclass

import torch


#: The id of a row whose image is not known: it matches its partner alone.
UNKNOWN = -100


def distinct(ids: torch.Tensor) -> torch.Tensor:
    """Ids of which each unknown one is different from all others: `[rows]`."""
    lone = torch.iinfo(torch.long).min + torch.arange(len(ids), device=ids.device)
    return torch.where(ids == UNKNOWN, lone, ids.long())


@dataclass
class Matches:
    """The targets of one direction, `n` rows against `m` keys; one of the three forms is given.

    Args:
        positions: `[n]`, each row's only match.
        ids: of the rows `[n]` and of the keys `[m]`: equal ones match.
        soft: `[n, m]`, how much each key counts.
    """

    positions: torch.Tensor | None = None
    ids: tuple[torch.Tensor, torch.Tensor] | None = None
    soft: torch.Tensor | None = None

    def targets(self, dtype: torch.dtype) -> torch.Tensor:
        """As `cross_entropy` takes them: `[n]` positions or `[n, m]` shares."""
        if self.positions is not None:
            return self.positions
        if self.soft is not None:
            return self.soft.to(dtype)
        rows, keys = self.ids
        same = (rows[:, None] == keys).to(dtype)
        return same / same.sum(dim=1, keepdim=True)

    def sums(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the keys that a row matches, `[n, d]`, and their number, `[n]`; needs no table.

        Args:
            keys: `[m, d]`.
        """
        if self.positions is not None:
            return keys[self.positions], keys.new_ones(len(self.positions))
        if self.soft is not None:
            soft = self.soft.to(keys.dtype)
            return soft @ keys, soft.sum(dim=1)
        rows = len(self.ids[0])
        images, groups = torch.unique(torch.cat(self.ids), return_inverse=True)
        of_rows, of_keys = groups[:rows], groups[rows:]
        sums = keys.new_zeros(len(images), keys.shape[1]).index_add(0, of_keys, keys)
        return sums[of_rows], torch.bincount(of_keys, minlength=len(images))[of_rows].to(keys.dtype)
