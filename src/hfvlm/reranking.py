"""Judging the nearest again: a fusion model reads pairs that similarity has found, each image encoded once.

The evaluation of Align before Fuse, https://arxiv.org/abs/2107.07651, and BLIP, https://arxiv.org/abs/2201.12086.
"""

from collections.abc import Callable
from typing import Any

import torch


#: what a pair scores that is not among the nearest, as in the originals
UNRANKED = -100.0


def check_judges(model: Any) -> None:
    """Refuses a model that reads no pair of an image and a text together.

    Raises:
        ValueError: it is such a model.
    """
    if not hasattr(model, "match"):
        raise ValueError(
            f"rerank needs a model that judges pairs of images and texts, {type(model).__name__} only compares them: "
            "use a retrieval head, such as BlipForImageTextRetrieval"
        )


@torch.inference_mode()
def judge_pairs(
    model: Any,
    image_tokens: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    images: torch.Tensor,
    texts: torch.Tensor,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """How well pairs match, `[pairs]`: the logit of a match.

    An image's pairs are read together, so that its keys and values are projected once for all of them, and texts of
    like length, so that little of a batch is padding.

    Args:
        model: a retrieval head with `match`.
        image_tokens: `[images, tokens, width]`, `last_hidden_state` of its `get_image_features`.
        input_ids, attention_mask: `[texts, length]`, padded on the right.
        images, texts: `[pairs]`, long: rows of the two.
        batch_size: pairs that are read at a time.
        progress: is told how many pairs are judged, of how many.
    """
    lengths = attention_mask.sum(dim=1)
    states = None
    if model.fusion_layer:  # fusion goes on from texts that are read once
        parts = zip(input_ids.split(batch_size), attention_mask.split(batch_size))
        states = torch.cat([model.get_text_features(*part).last_hidden_state for part in parts])
    # by image, and an image's by length: two stable sorts
    order = lengths[texts].argsort(stable=True)
    order = order[images[order].argsort(stable=True)]
    if not len(images):
        return torch.empty(0, device=image_tokens.device)
    scores = torch.empty(len(images), dtype=torch.float32, device=image_tokens.device)
    for done, chosen in enumerate(order.split(batch_size), 1):
        used, index = images[chosen].unique(return_inverse=True)
        of_text = texts[chosen]
        length = int(lengths[of_text].max())
        logits = model.match(
            image_tokens[used],
            input_ids[of_text, :length],
            attention_mask[of_text, :length],
            memory_index=None if len(used) == 1 else index,
            text_embeds=None if states is None else states[of_text, :length],
        )
        scores[chosen] = logits[:, 1].float()
        if progress is not None:
            progress(min(done * batch_size, len(images)), len(images))
    return scores


def rerank_scores(
    model: Any,
    image_tokens: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    similarity: torch.Tensor,
    k: int,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of each image's `k` nearest texts, and of each text's `k` nearest images.

    A pair that is near both ways is judged once.

    Args:
        model: a retrieval head; `rerank_adds_similarity` says whether a score is the judgement alone, or with it.
        image_tokens, input_ids, attention_mask, batch_size, progress: as in `judge_pairs`.
        similarity: `[images, texts]`.
        k: how many are judged; all where there are fewer.

    Returns:
        `[images, texts]` and `[texts, images]`; the pairs that are not near score -100.

    Raises:
        ValueError: a `k` below 1, or a similarity of other images and texts.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if list(similarity.shape) != [len(image_tokens), len(input_ids)]:
        raise ValueError(
            f"similarity must be [{len(image_tokens)}, {len(input_ids)}], one row an image and one column a text; got "
            f"{list(similarity.shape)}"
        )
    near = [torch.zeros_like(similarity, dtype=torch.bool) for _ in range(2)]
    for dim in (1, 0):
        best = similarity.topk(min(k, similarity.shape[dim]), dim=dim).indices
        near[1 - dim].scatter_(dim, best, True)
    images, texts = (near[0] | near[1]).nonzero(as_tuple=True)
    scores = judge_pairs(model, image_tokens, input_ids, attention_mask, images, texts, batch_size, progress)
    table = torch.full_like(similarity, UNRANKED, dtype=torch.float32)
    table[images, texts] = scores + similarity[images, texts] if model.rerank_adds_similarity else scores
    return table.masked_fill(~near[0], UNRANKED), table.masked_fill(~near[1], UNRANKED).t()


def behind(scores: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """A table of `rerank_scores` where the pairs that were not judged come behind all others, by similarity.

    Args:
        scores, similarity: of one shape; similarities are cosines.
    """
    judged = scores != UNRANKED
    return torch.where(judged, scores, scores[judged].min() - 2 + similarity.float())
