"""Contrastive losses of images and texts: softmax both ways (InfoNCE) and sigmoid (SigLIP).

Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020; Sigmoid Loss
for Language Image Pre-Training, https://arxiv.org/abs/2303.15343.

With several processes the features of all are contrasted, and the loss and its gradients are those of one process that
has all pairs, once `DistributedDataParallel` has taken the mean over processes; also where processes have different
numbers of pairs. Logits are computed in fp32 (or the features' own fp64), whatever autocast says: at a scale of 100,
bf16 would round them to halves.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from hfvlm.losses.chunked import logsumexp_sum, logsumexp_sum_both_ways, softplus_sum
from hfvlm.losses.matches import Matches
from hfvlm.losses.pairs import Pairs, exchange, precise


def similarity_logits(
    queries: torch.Tensor, keys: torch.Tensor, scale: torch.Tensor | float, bias: torch.Tensor | float | None = None
) -> torch.Tensor:
    """`scale * queries @ keys.T + bias`: `[n, d]` and `[m, d]` -> `[n, m]`."""
    logits = (queries * scale) @ keys.t()
    return logits if bias is None else logits + bias


def info_nce(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scale: torch.Tensor | float,
    targets: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The softmax loss of one direction: each query finds its key among all.

    Args:
        queries: `[n, d]`, of length 1.
        keys: `[m, d]`, of length 1.
        scale: what similarities are multiplied by, `1 / temperature`.
        targets: `[n]` positions of the right keys, or `[n, m]` shares; left out: query `i` finds key `i`.
        label_smoothing: the share of the target that is spread over all keys.

    Returns:
        The mean over the queries.
    """
    if targets is None:
        if len(queries) > len(keys):
            raise ValueError(f"without targets query i finds key i: got {len(queries)} queries for {len(keys)} keys")
        targets = torch.arange(len(queries), device=queries.device)
    with full_precision(queries.device):
        logits = similarity_logits(precise(queries), precise(keys), scale)
        targets = targets.to(logits.dtype) if targets.is_floating_point() else targets
        return nn.functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    logit_bias: torch.Tensor | None = None,
    image_ids: torch.Tensor | None = None,
    soft_targets: tuple[torch.Tensor, torch.Tensor] | None = None,
    label_smoothing: float = 0.0,
    queue: tuple[torch.Tensor, ...] | None = None,
    gather: bool | str = True,
    local_loss: bool = False,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The mean of two softmax losses: each image finds its text, each text its image.

    Args:
        image_embeds, text_embeds: `[n, d]`, of length 1; row `i` of both is a pair.
        logit_scale: `[]`, what similarities are multiplied by (not its logarithm).
        logit_bias: `[]`, added to all logits; the softmax does not feel it.
        image_ids: `[n]`, long; rows of the same image (also of other processes and in the queue) share the target
            instead of being negatives. -100: not known.
        soft_targets: what an image's and a text's target is, each `[n, m]`; the `m` keys are the rows of all
            processes, then the queue's.
        label_smoothing: the share of the target that is spread over all keys.
        queue: image features and text features `[k, d]` that are further negatives, without gradient; then
            optionally their ids `[k]`.
        gather: contrast with the rows of all processes. "detached": the other processes' rows are constants; with
            `local_loss` the keys are, too, of the own rows.
        local_loss: each process computes only its own rows' losses; their mean over processes is the same loss.
        chunk_size: compute so many rows at a time, never holding all logits.

    Raises:
        ValueError: shapes or options that do not fit; says which.
        TypeError: `image_ids` that are no tensor of integers.
    """
    _check_options(gather, chunk_size)
    _check_pairs(image_embeds, text_embeds, logit_scale, image_ids)
    _check_queue(queue, image_embeds)
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
    if soft_targets is not None and len(soft_targets) != 2:
        raise ValueError(f"soft_targets must be a pair, the images' and the texts', got {len(soft_targets)}")
    if soft_targets is not None and image_ids is not None:
        raise ValueError("pass soft_targets or image_ids, not both: each of them says what the targets are")
    with full_precision(image_embeds.device):
        pairs = exchange(image_embeds, text_embeds, image_ids, gather, local_loss)
        if queue is not None:
            pairs.add_queue(*queue)
        elif len(pairs.text_keys) == 1:
            warnings.warn(
                "a contrastive loss of a single pair is 0: there is nothing to contrast it with. Raise the batch "
                "size, gather across processes, or pass a queue",
                stacklevel=2,
            )
        scale = _scalar(logit_scale, pairs.images)
        to_texts, to_images = pairs.matches(soft_targets)
        if chunk_size is None or chunk_size >= len(pairs.images):
            bias = None if logit_bias is None else _scalar(logit_bias, pairs.images)
            per_image = similarity_logits(pairs.images, pairs.text_keys, scale, bias)
            if pairs.square:
                per_text = per_image.t()
            else:
                per_text = similarity_logits(pairs.texts, pairs.image_keys, scale, bias)
            total = sum(
                nn.functional.cross_entropy(
                    logits, matches.targets(logits.dtype), label_smoothing=label_smoothing, reduction="sum"
                )
                for logits, matches in ((per_image, to_texts), (per_text, to_images))
            )
        else:
            total = _in_chunks(pairs, scale, to_texts, to_images, label_smoothing, chunk_size)
            if logit_bias is not None:  # its gradient is 0, which DistributedDataParallel waits for
                total = total + 0.0 * _scalar(logit_bias, total)
        return total * (pairs.share / 2)


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    image_ids: torch.Tensor | None = None,
    gather: bool | str = True,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Each pair of an image and a text is one question: do they match? The sum over all pairs, divided by the images.

    A process computes its own images against the texts of all.

    Args:
        image_embeds, text_embeds: `[n, d]`, of length 1; row `i` of both is a pair.
        logit_scale: `[]`, what similarities are multiplied by (not its logarithm).
        logit_bias: `[]`, added to all logits.
        image_ids: `[n]`, long; rows of the same image match each other. -100: not known.
        gather: contrast with the texts of all processes. "detached": those of the other processes are constants.
        chunk_size: compute so many rows at a time, never holding all logits.

    Raises:
        ValueError: shapes or options that do not fit; says which.
        TypeError: `image_ids` that are no tensor of integers.
    """
    _check_options(gather, chunk_size)
    _check_pairs(image_embeds, text_embeds, logit_scale, image_ids)
    with full_precision(image_embeds.device):
        pairs = exchange(image_embeds, text_embeds, image_ids, gather, local=True, one_way=True)
        images, texts = pairs.images, pairs.text_keys
        scale = _scalar(logit_scale, images)
        bias = images.new_zeros(()) if logit_bias is None else _scalar(logit_bias, images)
        matches, _ = pairs.matches()
        sums, counts = matches.sums(texts)
        matching = scale * (images * sums).sum() + bias * counts.sum()
        if chunk_size is None or chunk_size >= len(images):
            total = nn.functional.softplus(similarity_logits(images, texts, scale, bias)).sum()
        else:
            total = softplus_sum(images, texts, scale, bias, chunk_size)
        return (total - matching) * pairs.share  # of a match softplus(-x), which is softplus(x) - x


def _in_chunks(
    pairs: Pairs, scale: torch.Tensor, to_texts: Matches, to_images: Matches, smoothing: float, chunk_size: int
) -> torch.Tensor:
    """The sum of both directions' cross entropies: what normalises each row, less its expected logit."""
    directions = ((pairs.images, pairs.text_keys, to_texts), (pairs.texts, pairs.image_keys, to_images))
    expected, weights = 0.0, []
    for rows, keys, matches in directions:
        sums, counts = matches.sums(keys)
        if matches.ids is not None:  # a mean over the matches
            sums, counts = sums / counts[:, None], torch.ones_like(counts)
        logits = (rows * sums).sum()
        if smoothing:
            logits = (1 - smoothing) * logits + smoothing * (rows.sum(dim=0) @ keys.mean(dim=0))
            counts = (1 - smoothing) * counts + smoothing
        expected = expected + scale * logits
        weights.append(counts)
    if pairs.square:
        return logsumexp_sum_both_ways(pairs.images, pairs.text_keys, scale, *weights, chunk_size) - expected
    normalising = (
        logsumexp_sum(rows, keys, scale, weight, chunk_size) for (rows, keys, _), weight in zip(directions, weights)
    )
    return sum(normalising) - expected


def full_precision(device: torch.device) -> AbstractContextManager:
    """Turns autocast off."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _scalar(value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, device=like.device).to(like.dtype).reshape(())


def _check_options(gather: bool | str, chunk_size: int | None) -> None:
    if gather not in (True, False, "detached"):
        raise ValueError(f"gather must be True, False or 'detached', got {gather!r}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 row, got {chunk_size}; None: all at once")


def _check_pairs(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, image_ids: torch.Tensor | None
) -> None:
    if len(images) != len(texts):
        raise ValueError(
            f"row i of image_embeds and row i of text_embeds are a pair, got {len(images)} images and {len(texts)} "
            "texts; repeat an image that has several texts, and name it in image_ids"
        )
    if images.ndim != 2 or images.shape != texts.shape:
        raise ValueError(
            f"image_embeds and text_embeds must both be [n, d], got {list(images.shape)} and {list(texts.shape)}"
        )
    if isinstance(scale, torch.Tensor) and scale.numel() != 1:
        raise ValueError(f"logit_scale must be one number, got shape {list(scale.shape)}")
    if image_ids is not None and (not isinstance(image_ids, torch.Tensor) or image_ids.is_floating_point()):
        kind = image_ids.dtype if isinstance(image_ids, torch.Tensor) else type(image_ids).__name__
        raise TypeError(f"image_ids must be a tensor of integers (torch.long), got {kind}")
    if image_ids is not None and image_ids.shape != images.shape[:1]:
        raise ValueError(f"image_ids must be [{len(images)}], one a row, got {list(image_ids.shape)}")


def _check_queue(queue: tuple[torch.Tensor, ...] | None, images: torch.Tensor) -> None:
    if queue is None:
        return
    shapes = [list(part.shape) for part in queue if part is not None]
    rows = shapes[0][:1] if shapes else []
    fits = shapes[:2] == [[*rows, images.shape[1]]] * 2 and shapes[2:] in ([], [rows])
    if not fits or len(queue) > 3:
        raise ValueError(
            f"queue must be image features [k, {images.shape[1]}], text features [k, {images.shape[1]}] and "
            f"optionally ids [k], got {', '.join(map(str, shapes)) or 'nothing'}"
        )
