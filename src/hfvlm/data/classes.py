"""Batches for heads that choose the class of an image, or of two, and a text."""

from typing import Any

import torch

from hfvlm.processing import reading_options


class ClassCollator:
    """Items `{"image": PIL image, "text": ..., "label": class number}` to a batch; with an `"image_second"` in the
    items it is about two images.

    Args:
        processor: of a model that reads images with texts.
        max_length: tokens a text may have; None: the processor's own limit.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self.processor, self.max_length, self.options = processor, max_length, reading_options(processor)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts, images = [item["text"] for item in items], [item["image"] for item in items]
        batch = dict(self.processor(images=images, text=texts, max_length=self.max_length, **self.options))
        if "image_second" in items[0]:
            second = self.processor(images=[item["image_second"] for item in items])
            batch["pixel_values_second"] = second["pixel_values"]
        return {**batch, "labels": torch.tensor([item["label"] for item in items])}
