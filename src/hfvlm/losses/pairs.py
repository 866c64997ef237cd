"""What one process contrasts: its rows, and the keys of all processes."""

from dataclasses import dataclass

import torch

from hfvlm.losses.gather import gather as join_rows
from hfvlm.losses.gather import own_rows, row_counts, several_processes
from hfvlm.losses.matches import UNKNOWN, Matches, distinct


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or in fp64 if it is in that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass
class Pairs:
    """The rows whose losses this process computes, and the keys of all processes that they are contrasted with.

    Args:
        images, texts: `[n, d]`, the rows.
        image_keys, text_keys: `[m, d]`.
        own: where among the keys this process's rows are.
        ids: `[n]` of the rows and `[m]` of the keys.
        local: the rows are this process's own; else they are those of all processes.
        counts: how many rows each process has.
        share: what the sum over the rows is multiplied by, so that the mean over processes is the mean over all rows.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_keys: torch.Tensor
    text_keys: torch.Tensor
    own: slice
    ids: tuple[torch.Tensor, torch.Tensor] | None
    local: bool
    counts: list[int]
    share: float

    @property
    def square(self) -> bool:
        """Whether both directions have the same logits, transposed."""
        return self.images is self.image_keys and self.texts is self.text_keys

    def add_queue(self, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor | None = None) -> None:
        """Appends features that are only keys; without ids they match nothing."""
        self.image_keys = torch.cat([self.image_keys, images.detach().to(self.image_keys)])
        self.text_keys = torch.cat([self.text_keys, texts.detach().to(self.text_keys)])
        if self.ids is not None:
            rows, keys = self.ids
            ids = keys.new_full((len(images),), UNKNOWN) if ids is None else ids.to(keys)
            self.ids = rows, torch.cat([keys, ids])

    def matches(self, soft: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[Matches, Matches]:
        """The targets of the images among the texts, and of the texts among the images."""
        if soft is not None:
            for name, table, keys in zip(("an image", "a text"), soft, (self.text_keys, self.image_keys)):
                expected = [self.own.stop - self.own.start, len(keys)]
                if list(table.shape) != expected:
                    raise ValueError(f"the soft_targets of {name} must be {expected}, got {list(table.shape)}")
            if not self.local and len(self.counts) > 1:
                soft = tuple(join_rows(table, with_grad=False, counts=self.counts) for table in soft)
            return Matches(soft=soft[0].detach()), Matches(soft=soft[1].detach())
        if self.ids is not None:
            return Matches(ids=self.ids), Matches(ids=self.ids)
        first = self.own.start if self.local else 0
        positions = torch.arange(first, first + len(self.images), device=self.images.device)
        return Matches(positions), Matches(positions)


def exchange(
    images: torch.Tensor,
    texts: torch.Tensor,
    ids: torch.Tensor | None,
    gather: bool | str,
    local: bool,
    one_way: bool = False,
) -> Pairs:
    """Fetches the other processes' rows.

    Args:
        gather: as the losses have it. Where it is "detached", the own rows among the keys keep their gradient, unless
            both directions are computed of the own rows alone.
        local: compute the own rows' losses alone.
        one_way: only images against texts; the images of the others are not fetched.

    Raises:
        ValueError: no process has a row.
    """
    images, texts = precise(images), precise(texts)
    alone = gather is False or not several_processes()
    counts = [len(images)] if alone else row_counts(len(images), images.device)
    if sum(counts) == 0:
        raise ValueError("image_embeds and text_embeds have no rows: there is nothing to contrast")
    own = slice(0, len(images)) if alone else own_rows(counts)

    def join(rows: torch.Tensor) -> torch.Tensor:
        joined = join_rows(rows, with_grad=gather is True, counts=counts)
        if gather == "detached" and (one_way or not local):
            joined = torch.cat([joined[: own.start], rows, joined[own.stop :]])
        return joined

    keys = (images, texts) if alone else (images if one_way else join(images), join(texts))
    if ids is not None:
        ids = distinct(ids if alone else join_rows(ids, with_grad=False, counts=counts))
    if local:
        rows, row_ids, share = (images, texts), None if ids is None else ids[own], len(counts) / sum(counts)
    else:
        rows, row_ids, share = keys, ids, 1 / sum(counts)
    return Pairs(*rows, *keys, own, None if ids is None else (row_ids, ids), local, counts, share)
