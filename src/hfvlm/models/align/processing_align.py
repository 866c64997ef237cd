"""ALIGN inputs: centre-cropped pixels between -1 and 1, and texts padded to 64 tokens."""

from transformers import EfficientNetImageProcessorPil

from hfvlm.two_tower_processing import TwoTowerProcessor


class AlignProcessor(TwoTowerProcessor):
    """Images to pixels, texts to ids; either alone or both, in any numbers.

    Args:
        image_processor: a stock one; `image_processor_for(289)` makes that of the published weights.
        tokenizer: a BERT tokenizer.
        pad_to_max: pad every text to the full length unless a call says otherwise.
        max_length: tokens a text may have, the start and end tokens among them, unless a call says otherwise.
    """

    def __init__(self, image_processor=None, tokenizer=None, pad_to_max: bool = True, max_length: int = 64, **kwargs):
        super().__init__(image_processor, tokenizer, pad_to_max=pad_to_max, **kwargs)
        self.max_length = max_length

    def _encode(
        self, text: str | list[str], padding: bool | str | None, truncation: bool, max_length: int | None
    ) -> dict[str, list[list[int]]]:
        return super()._encode(text, padding, truncation, self.max_length if max_length is None else max_length)


def image_processor_for(image_size: int = 289) -> EfficientNetImageProcessorPil:
    """The transform of the published weights, for a size: squared a fifth larger, the middle of that, in [-1, 1]."""
    resized = round(image_size * 346 / 289)
    return EfficientNetImageProcessorPil(
        size={"height": resized, "width": resized},
        crop_size={"height": image_size, "width": image_size},
        do_center_crop=True,
        resample=2,  # bilinear
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_normalize=False,
        include_top=False,
    )
