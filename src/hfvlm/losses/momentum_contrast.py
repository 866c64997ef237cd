"""Contrast of images and texts with a momentum teacher: its features are the keys, and soften the targets.

Align before Fuse, https://arxiv.org/abs/2107.07651; Momentum Contrast, https://arxiv.org/abs/1911.05722.
"""

from dataclasses import dataclass

import torch
from torch import nn

from hfvlm.losses.contrastive import full_precision
from hfvlm.losses.gather import gather, own_rows, row_counts
from hfvlm.losses.matches import UNKNOWN, Matches, distinct
from hfvlm.losses.pairs import precise


@dataclass
class MomentumContrast:
    """What a step of contrast makes; `n` own rows, `m` rows of all processes, `k` in the queue.

    Args:
        loss_per_image, loss_per_text: scalars; `loss` is their mean.
        logits_per_image, logits_per_text: `[n, m + k]`, similarities over the temperature.
        teacher_per_image, teacher_per_text: `[n, m + k]`, the teacher's; None without it having a say (alpha 0).
        targets_per_image, targets_per_text: `[n, m + k]`, each row adds up to 1.
        counts: rows of each process.
        own: where among the keys the own rows are.
        ids: `[m]`, of the rows of all processes; None if every row is another image.
    """

    loss_per_image: torch.Tensor
    loss_per_text: torch.Tensor
    logits_per_image: torch.Tensor
    logits_per_text: torch.Tensor
    teacher_per_image: torch.Tensor | None
    teacher_per_text: torch.Tensor | None
    targets_per_image: torch.Tensor
    targets_per_text: torch.Tensor
    counts: list[int]
    own: slice
    ids: torch.Tensor | None

    @property
    def loss(self) -> torch.Tensor:
        return (self.loss_per_image + self.loss_per_text) / 2


def momentum_contrast(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    teacher_image_embeds: torch.Tensor,
    teacher_text_embeds: torch.Tensor,
    temperature: torch.Tensor,
    *,
    alpha: float = 0.0,
    queue: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
    image_ids: torch.Tensor | None = None,
    across: bool = True,
) -> MomentumContrast:
    """Each image finds its text, and each text its image, among the teacher's features of all processes and the queue.

    Args:
        image_embeds, text_embeds, teacher_image_embeds, teacher_text_embeds: `[n, d]`, of length 1; row `i` of each is
            one pair.
        temperature: one number, what similarities are divided by.
        alpha: how much of the targets is the teacher's own distribution, 0 to 1.
        queue: the teacher's image and text features `[k, d]` of earlier batches, and their images' ids `[k]` or None.
        image_ids: `[n]`, long: rows of the same image share the target; -100: not known.
        across: the rows of all processes are keys; off: of this one alone.

    Returns:
        The losses are means over the rows of all processes, once the mean over processes is taken.

    Raises:
        ValueError: an alpha out of range.
    """
    check_alpha(alpha)
    counts = row_counts(len(image_embeds), image_embeds.device) if across else [len(image_embeds)]
    own = own_rows(counts) if across else slice(0, len(image_embeds))

    def join(rows: torch.Tensor) -> torch.Tensor:
        return gather(rows, with_grad=False, counts=counts) if across else rows.detach()

    with full_precision(image_embeds.device):
        images, texts = precise(image_embeds), precise(text_embeds)
        teachers = [precise(rows.detach()) for rows in (teacher_image_embeds, teacher_text_embeds)]
        keys = [join(rows) for rows in teachers]
        ids = None if image_ids is None else join(image_ids)
        if queue is not None:
            keys = [torch.cat([rows, queued.to(rows)]) for rows, queued in zip(keys, queue)]
            if ids is not None:
                unknown = ids.new_full((len(queue[0]),), UNKNOWN)
                ids = torch.cat([ids, unknown if queue[2] is None else queue[2].to(ids)])
        image_keys, text_keys = keys
        if ids is None:
            same = torch.arange(own.start, own.stop, device=images.device)
            hard = nn.functional.one_hot(same, len(text_keys)).to(images.dtype)
        else:
            ids = distinct(ids)
            hard = Matches(ids=(ids[own], ids)).targets(images.dtype)
            ids = ids[: sum(counts)]
        temperature = temperature.to(images.dtype)
        sides = []
        for rows, taught, other in ((images, teachers[0], text_keys), (texts, teachers[1], image_keys)):
            logits, targets, teacher = rows @ other.t() / temperature, hard, None
            if alpha:
                teacher = taught @ other.t() / temperature.detach()
                targets = alpha * teacher.softmax(dim=-1) + (1 - alpha) * hard
            share = len(counts) / sum(counts)
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum") * share
            sides.append((loss, logits, teacher, targets))
    (image_loss, *of_images), (text_loss, *of_texts) = sides
    both = [part for pair in zip(of_images, of_texts) for part in pair]
    return MomentumContrast(image_loss, text_loss, *both, counts=counts, own=own, ids=ids)


def check_alpha(alpha: float) -> None:
    """Refuses a share of the targets that is none."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be between 0 (no distillation) and 1, got {alpha}")


def ramp(alpha: float, step: int, steps: int | None) -> float:
    """`alpha`, growing from 0 over the first `steps` steps."""
    return alpha if not steps else alpha * min(1.0, step / steps)


def soft_cross_entropy(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """The cross entropy of each row under the teacher's distribution: `[rows, classes]` twice -> `[rows]`."""
    return -(teacher_logits.float().softmax(dim=-1) * logits.float().log_softmax(dim=-1)).sum(dim=-1)
