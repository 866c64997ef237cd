"""LAVIS's processors: one image to pixels, one text to a cleaned text."""

import re
from typing import Any

import torch
from PIL import Image

from hfvlm.data.augment import training_view
from hfvlm.images import open_image
from hfvlm.lavis.table import Entry
from hfvlm.pixels import PixelLoader


MAX_WORDS = 50


def unchanged(item: Any) -> Any:
    """What LAVIS does where its configuration of a model names no processor."""
    return item


class ImageToPixels:
    """An image, in any form that `open_image` takes, to pixels `[channels, h, w]`.

    Args:
        image_processor: the model's own.
        train: of a random view of the image.
    """

    def __init__(self, image_processor: Any, train: bool = False):
        self.loader = PixelLoader(image_processor)
        self.train = train

    def __call__(self, item: Any) -> torch.Tensor:
        if self.train:
            item = self._view(open_image(item))
        return self.loader([item])["pixel_values"][0]

    def _view(self, image: Image.Image) -> Image.Image:
        size = self.loader.image_processor.size
        return training_view(image, (size.width, size.height))


class CleanText:
    """A text in small letters, without most punctuation, of 50 words at most.

    Args:
        prompt: goes before it.
    """

    def __init__(self, prompt: str = ""):
        self.prompt = prompt

    def __call__(self, item: str) -> str:
        words = re.sub(r"[.!\"()*#:;~]", " ", item.lower())
        words = re.sub(r"\s{2,}", " ", words).rstrip("\n").strip(" ").split(" ")
        return self.prompt + " ".join(words[:MAX_WORDS])


class CleanQuestion:
    """A question in small letters, without most punctuation but its question mark, of 50 words at most."""

    def __call__(self, item: str) -> str:
        words = re.sub(r"[.!\"()*#:;~]", "", item.lower()).rstrip(" ").split(" ")
        return " ".join(words[:MAX_WORDS])


def processors_of(entry: Entry, processor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and the text processors of a model, each for "train" and for "eval".

    Args:
        processor: the model's own.
    """
    images = processor.image_processor
    clean = CleanQuestion if entry.asks else CleanText
    train = CleanQuestion() if entry.asks else CleanText(entry.prompt)
    return (
        {"train": ImageToPixels(images, train=True) if entry.trains else unchanged, "eval": ImageToPixels(images)},
        {
            "train": train if entry.trains else unchanged,
            "eval": clean() if entry.cleans else unchanged,
        },
    )
