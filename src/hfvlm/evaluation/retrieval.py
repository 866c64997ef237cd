"""Recall of images by text and of texts by image, where an image may have several texts."""

from collections.abc import Sequence

import torch


def recall_at(
    similarity: torch.Tensor, image_of_text: torch.Tensor | Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at `k` both ways, from all similarities.

    Args:
        similarity: `[images, texts]`.
        image_of_text: `[texts]`: the row of the image that each text describes.
        ks: how many results count.

    Returns:
        `text_to_image_r@k`: the share of texts whose image is among the `k` nearest; `image_to_text_r@k`: the share of
        images that have one of their texts among the `k` nearest. Of equal similarities the earlier row comes first,
        so a model that finds everything alike scores no better than chance.

    Raises:
        ValueError: similarities that are no matrix or not finite; a text without an image, or an image without a text;
            a `k` below 1.
    """
    if similarity.ndim != 2:
        raise ValueError(f"similarity must be [images, texts], got {list(similarity.shape)}")
    image_of_text = _checked(image_of_text, *similarity.shape, ks).to(similarity.device)
    own = image_of_text == torch.arange(len(similarity), device=similarity.device)[:, None]  # [images, texts]
    return _shares(_image_ranks(similarity, own), _text_ranks(similarity, image_of_text), ks)


def recall_of_embeddings(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    image_of_text: torch.Tensor | Sequence[int],
    ks: Sequence[int] = (1, 5, 10),
    chunk_size: int = 1024,
) -> dict[str, float]:
    """As `recall_at`, of embeddings: the matrix of all similarities is never held.

    Args:
        image_embeds: `[images, dim]`, of length 1.
        text_embeds: `[texts, dim]`, of length 1.
        image_of_text, ks: as in `recall_at`.
        chunk_size: images, then texts, that are compared with all of the other at a time.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    images, texts = image_embeds.float(), text_embeds.float()
    image_of_text = _checked(image_of_text, len(images), len(texts), ks).to(images.device)
    image_ranks, text_ranks = [], []
    for start in range(0, len(images), chunk_size):
        chunk = images[start : start + chunk_size]
        rows = torch.arange(start, start + len(chunk), device=images.device)
        image_ranks.append(_image_ranks(chunk @ texts.t(), image_of_text == rows[:, None]))
    for start in range(0, len(texts), chunk_size):
        chunk = texts[start : start + chunk_size]
        text_ranks.append(_text_ranks(images @ chunk.t(), image_of_text[start : start + len(chunk)]))
    return _shares(torch.cat(image_ranks), torch.cat(text_ranks), ks)


def _checked(image_of_text: torch.Tensor | Sequence[int], images: int, texts: int, ks: Sequence[int]) -> torch.Tensor:
    image_of_text = torch.as_tensor(image_of_text, dtype=torch.long)
    if image_of_text.shape != (texts,):
        raise ValueError(f"image_of_text {list(image_of_text.shape)} must name an image for each of the {texts} texts")
    if not images or not texts:
        raise ValueError(f"there is nothing to find: {images} images, {texts} texts")
    if image_of_text.min() < 0 or image_of_text.max() >= images:
        raise ValueError(f"image_of_text must hold rows of the {images} images, 0 to {images - 1}")
    bare = images - len(image_of_text.unique())
    if bare:
        raise ValueError(f"{bare} of {images} images have no text in image_of_text: leave them out")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers of results, at least 1 each; got {list(ks)}")
    return image_of_text


def _image_ranks(similarity: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """`[images]`: how many texts come before the first of an image's own.

    Args:
        similarity, own: `[images, texts]`; own is true where the text is the image's.
    """
    _refuse_nan(similarity)
    best = similarity.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    # the first of the image's own texts that are as near as its nearest
    first = ((similarity == best) & own).int().argmax(dim=1, keepdim=True)
    return _before(similarity, best, first, dim=1)


def _text_ranks(similarity: torch.Tensor, image_of_text: torch.Tensor) -> torch.Tensor:
    """`[texts]`: how many images come before a text's own; `similarity` is `[images, texts]`."""
    _refuse_nan(similarity)
    own = image_of_text[None, :]
    return _before(similarity, similarity.gather(0, own), own, dim=0)


def _before(similarity: torch.Tensor, score: torch.Tensor, position: torch.Tensor, dim: int) -> torch.Tensor:
    """How many entries along `dim` are larger than `score`, or equal and before `position`."""
    shape = [1, 1]
    shape[dim] = similarity.shape[dim]
    earlier = torch.arange(similarity.shape[dim], device=similarity.device).view(shape) < position
    return ((similarity > score) | ((similarity == score) & earlier)).sum(dim=dim)


def _refuse_nan(similarity: torch.Tensor) -> None:
    if not torch.isfinite(similarity).all():
        raise ValueError("similarities are not finite: the model gave NaN or infinity for an image or a text")


def _shares(image_ranks: torch.Tensor, text_ranks: torch.Tensor, ks: Sequence[int]) -> dict[str, float]:
    ways = {"image_to_text": image_ranks, "text_to_image": text_ranks}
    return {f"{way}_r@{k}": (ranks < k).double().mean().item() for way, ranks in ways.items() for k in ks}
