"""CLIP inputs: centre-cropped pixels, and texts cleaned, cut and padded as the original does."""

import html
import re
from typing import Any

from transformers import BatchFeature

from hfvlm.processing import VlmProcessor


try:
    from ftfy import fix_text
except ImportError:  # a folder loaded where only transformers is: texts with broken encodings stay broken

    def fix_text(text: str) -> str:
        return text


def clean(text: str) -> str:
    """Mends broken encodings and HTML entities, and makes any run of white space one space."""
    text = html.unescape(html.unescape(fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class ClipProcessor(VlmProcessor):
    """Images to pixels, texts to ids.

    Args:
        image_processor: a stock one; `CLIPImageProcessorPil` is pixel-exact with the original's.
        tokenizer: CLIP's, or the tokenizer of another text tower.
        pad_to_max: pad every text to the full length, as text towers without a causal mask need it.
    """

    def __init__(self, image_processor=None, tokenizer=None, pad_to_max: bool = False, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.pad_to_max = pad_to_max

    def __call__(
        self, images: Any = None, text: str | list[str] | None = None, return_tensors: str = "pt", **kwargs: Any
    ) -> BatchFeature:
        raise NotImplementedError
