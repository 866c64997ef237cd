"""ViT inputs: squared pixels."""

from typing import Any

from transformers import BatchFeature

from hfvlm.processing import VlmProcessor


class VitProcessor(VlmProcessor):
    """Images to pixels.

    Args:
        image_processor: a stock one; `ViTImageProcessorPil` squares images by bilinear interpolation and normalises
            with mean and deviation 0.5, as the published models expect.
    """

    def __init__(self, image_processor=None, **kwargs):
        super().__init__(image_processor, **kwargs)

    def __call__(self, images: Any = None, return_tensors: str = "pt", **images_kwargs: Any) -> BatchFeature:
        """
        Args:
            images: one image or several, in any form the image processor takes.
            images_kwargs: for the image processor (`size`, `do_resize`, ...).

        Returns:
            `pixel_values` `[images, channels, h, w]`.

        Raises:
            ValueError: no images.
            TypeError: a text, which this model does not read.
        """
        if "text" in images_kwargs:
            raise TypeError("VitProcessor takes images alone: ViT reads no text")
        if images is None:
            raise ValueError("pass images: there is nothing to process")
        return self.image_processor(images, return_tensors=return_tensors, **images_kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values"]
