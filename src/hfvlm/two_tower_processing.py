"""What the processors of two-tower models share: pixels for one tower, ids for the other."""

from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import ImagesKwargs, TextKwargs

from hfvlm.processing import VlmProcessor


class TwoTowerProcessor(VlmProcessor):
    """Images to pixels, texts to ids; either alone or both, in any numbers.

    Args:
        image_processor: a stock one.
        tokenizer: of the text tower.
        pad_to_max: pad every text to the model's full length unless a call says otherwise.
    """

    def __init__(self, image_processor=None, tokenizer=None, pad_to_max: bool = False, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.pad_to_max = pad_to_max

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        padding: bool | str | None = None,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
        **images_kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: one image or several, in any form the image processor takes.
            text: one text or several.
            padding: True or "longest": to the longest text; "max_length": to `max_length`; False: texts of one length
                only. None: "max_length" if the processor has `pad_to_max`, else "longest".
            truncation: cut texts over the limit, keeping their end token; False: refuse them.
            max_length: tokens a text may have, the start and end tokens among them; by default, and at most, the
                tokenizer's `model_max_length`.
            images_kwargs: for the image processor (`size`, `do_resize`, ...).

        Returns:
            `pixel_values` `[images, channels, h, w]`; `input_ids` and `attention_mask` `[texts, length]`, padded on
            the right.

        Raises:
            ValueError: nothing given, an empty list, or a text over the limit without truncation.
            TypeError: a text that is no string, or another argument of a tokenizer.
        """
        foreign = sorted(images_kwargs.keys() & (TextKwargs.__annotations__.keys() - ImagesKwargs.__annotations__))
        if foreign:
            raise TypeError(f"{type(self).__name__} takes max_length, padding and truncation, no {', '.join(foreign)}")
        if images is None and text is None:
            raise ValueError("pass images, text, or both: there is nothing to process")
        data = {}
        if images is not None:
            if isinstance(images, (list, tuple)) and not images:
                raise ValueError("images is an empty list: give at least one image, or leave it out")
            data.update(self.image_processor(images, return_tensors=return_tensors, **images_kwargs))
        if text is not None:
            data.update(self._encode(text, padding, truncation, max_length))
        return BatchFeature(data, tensor_type=return_tensors)

    def clean(self, text: str) -> str:
        """A text as the tokenizer should see it."""
        return text

    def ids(self, texts: list[str], limit: int | None) -> list[list[int]]:
        """Each text's ids, cut to `limit` if there is one."""
        cut = {"verbose": False} if limit is None else {"truncation": True, "max_length": limit}
        return self.tokenizer(texts, padding=False, **cut)["input_ids"]

    @property
    def padding_id(self) -> int:
        """The id that fills up shorter texts."""
        return self.tokenizer.pad_token_id

    def _encode(
        self, text: str | list[str], padding: bool | str | None, truncation: bool, max_length: int | None
    ) -> dict[str, list[list[int]]]:
        if padding is None:
            padding = "max_length" if self.pad_to_max else "longest"
        if padding not in (True, False, "longest", "max_length"):
            raise ValueError(f"padding must be None, True, False, 'longest' or 'max_length', got {padding!r}")
        if truncation not in (True, False):
            raise ValueError(f"truncation must be True or False, got {truncation!r}")
        limit = self.tokenizer.model_max_length
        if max_length is not None:
            if max_length < 2:
                raise ValueError(f"max_length must leave room for a start and an end token, got {max_length}")
            limit = min(limit, max_length)
        texts = [text] if isinstance(text, str) else text
        odd = [one for one in texts if not isinstance(one, str)] if isinstance(texts, (list, tuple)) else [texts]
        if odd:
            raise TypeError(f"text must be a string or a list of strings, got {type(odd[0]).__name__}")
        if not texts:
            raise ValueError("text is an empty list: give at least one text, or leave it out")
        rows = self.ids([self.clean(one) for one in texts], limit if truncation else None)
        longest = max(map(len, rows))
        if longest > limit:
            place = next(i for i, row in enumerate(rows) if len(row) == longest)
            raise ValueError(
                f"text {place} has {longest} tokens with its start and end, {limit} are allowed: shorten "
                f"{texts[place][:40]!r}..., or pass truncation=True"
            )
        if padding is False and len({len(row) for row in rows}) > 1:
            raise ValueError("padding=False takes texts of one length, these differ: pass padding=True")
        length = limit if padding == "max_length" else longest
        fill = self.padding_id
        return {
            "input_ids": [row + [fill] * (length - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in rows],
        }

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]
