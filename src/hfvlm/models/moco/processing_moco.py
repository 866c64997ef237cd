"""MoCo inputs: two random views of each image to learn from, or the middle of it."""

from typing import Any

from transformers import BatchFeature, CLIPImageProcessorPil

from hfvlm.images import open_image
from hfvlm.models.moco.views import RECIPES, random_view
from hfvlm.processing import VlmProcessor


#: of ImageNet's training images, as in the released code
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class MocoProcessor(VlmProcessor):
    """Images to pixels: of two random views each, or of the resized and centre-cropped image.

    Args:
        image_processor: a stock one. `image_processor_for(224)` makes the released code's: 8/7 of the size along the
            shorter side, bilinear, then the middle.
        augmentation: how views are drawn, by version: "v1", "v2" (milder colours, blur) or "v3" (smaller crops, one
            view always blurred, the other sometimes solarised).
    """

    def __init__(self, image_processor=None, augmentation: str = "v2", **kwargs):
        super().__init__(image_processor, **kwargs)
        if augmentation not in RECIPES:
            raise ValueError(f"augmentation must be one of {', '.join(RECIPES)}; got {augmentation!r}")
        self.augmentation = augmentation

    def __call__(
        self, images: Any = None, views: bool = False, return_tensors: str = "pt", **images_kwargs: Any
    ) -> BatchFeature:
        """
        Args:
            images: one image or several, in any form the image processor takes; for views: PIL images, paths, URLs,
                bytes or data URIs.
            views: draw two random views of each image, by torch's random numbers.
            images_kwargs: for the image processor (`size`, `do_resize`, ...).

        Returns:
            `pixel_values` `[images, channels, h, w]`; with `views` of the first view of each image, and
            `pixel_values_key`, of the second.

        Raises:
            ValueError: no images, or one that cannot be read.
            TypeError: a text, which this model does not read.
        """
        if "text" in images_kwargs:
            raise TypeError("MocoProcessor takes images alone: MoCo reads no text")
        if images is None:
            raise ValueError("pass images: there is nothing to process")
        if not views:
            return self.image_processor(images, return_tensors=return_tensors, **images_kwargs)
        opened = [open_image(image) for image in (images if isinstance(images, (list, tuple)) else [images])]
        if not opened:
            raise ValueError("images is empty: pass at least one")
        data = {}
        for name, recipe in zip(("pixel_values", "pixel_values_key"), RECIPES[self.augmentation], strict=True):
            drawn = [random_view(image, self.view_size, recipe) for image in opened]
            settings = {**images_kwargs, "do_resize": False, "do_center_crop": False}
            data[name] = self.image_processor(drawn, return_tensors=return_tensors, **settings)["pixel_values"]
        return BatchFeature(data)

    @property
    def view_size(self) -> tuple[int, int]:
        """(width, height) of a view: what the image processor crops or resizes to."""
        settings = self.image_processor
        size = settings.crop_size if getattr(settings, "do_center_crop", False) else settings.size
        if not size.get("height"):
            raise ValueError(f"the image processor gives no fixed size ({dict(size)}): set its crop_size")
        return size["width"], size["height"]

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "pixel_values_key"]


def image_processor_for(image_size: int) -> CLIPImageProcessorPil:
    """The released code's evaluation transform for a size, 224 pixels a side in the published models."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size * 8 // 7},
        crop_size={"height": image_size, "width": image_size},
        resample=2,  # bilinear
        **IMAGENET,
    )
