"""BLIP inputs: squared pixels, and texts that start with the decoder's token."""

from typing import Any

from transformers import BatchFeature
from transformers.processing_utils import ImagesKwargs, TextKwargs

from hfvlm.processing import VlmProcessor


class BlipProcessor(VlmProcessor):
    """Images to pixels, prompts and captions to ids.

    Args:
        image_processor: a stock one; `BlipImageProcessorPil` is pixel-exact with the original's evaluation.
        tokenizer: a BERT tokenizer whose `bos_token` starts the decoder ("[DEC]") and whose `sep_token` ends a text.
        prompt: what every caption starts with ("a picture of " in the original); the image-to-text pipeline cuts it
            off again.
    """

    def __init__(self, image_processor, tokenizer, prompt: str = "", **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
        self.prompt = prompt

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        suffix: str | list[str] | list[list[str]] | None = None,
        max_length: int | None = None,
        padding: bool | str = True,
        truncation: bool | None = None,
        task: str = "generate",
        return_tensors: str = "pt",
        **images_kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: one image or several, in any form the image processor takes.
            text: a prompt, or one an image: what the caption starts with. Left out: the processor's `prompt`.
            suffix: captions to learn, as PaliGemma's processor calls them: one an image, or a list of captions an
                image, of one length throughout.
            max_length: tokens a text may have, the start and end tokens among them.
            padding: True or "longest": to the longest text; "max_length": to `max_length`; False: texts of one length
                only.
            truncation: of texts over the limit. None: captions are cut (their end token kept), prompts refused; True:
                prompts to continue are cut, too; False: captions are refused, too. A prompt before captions is never
                cut.
            task: what `text` is for. "generate": prompts to continue, or before captions. "encode": texts to be read,
                from [CLS] to [SEP], padded on the right; any number of them.
            images_kwargs: for the image processor (`size`, `do_resize`, ...).

        Returns:
            `pixel_values` `[images, channels, h, w]`; with a text `input_ids` and `attention_mask`
            `[texts, length]` (padded left for prompts, which generation continues); with `suffix` also `labels`,
            -100 over padding and prompt.

        Raises:
            ValueError: nothing given; an empty prompt; a text over the limit; texts that do not fit the images, or
                differ in length without padding.
            TypeError: another argument of a tokenizer.
        """
        foreign = sorted(images_kwargs.keys() & (TextKwargs.__annotations__.keys() - ImagesKwargs.__annotations__))
        if foreign:
            raise TypeError(f"{type(self).__name__} takes max_length, padding and truncation, no {', '.join(foreign)}")
        if padding not in (True, False, "longest", "max_length"):
            raise ValueError(f"padding must be True, False, 'longest' or 'max_length', got {padding!r}")
        if truncation not in (None, True, False):
            raise ValueError(f"truncation must be None, True or False, got {truncation!r}")
        if task not in ("generate", "encode"):
            raise ValueError(f"task must be 'generate' or 'encode', got {task!r}")
        if task == "encode" and (text is None or suffix is not None):
            raise ValueError("task='encode' takes text, and no suffix: there is nothing to continue")
        if images is None and text is None and suffix is None:
            raise ValueError("pass images, text or suffix")
        data = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=return_tensors, **images_kwargs))
        count = len(data["pixel_values"]) if images is not None else None
        limit = min(max_length or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        if task == "encode":
            data.update(self._encoder_texts(text, limit, padding, truncation))
        elif suffix is not None:
            data.update(self._captions(suffix, text, count, limit, padding, truncation))
        elif text is not None or self.prompt:
            rows = self._prompt_ids(text, count, limit, cut=bool(truncation))
            data.update(self._padded(rows, "left", padding, limit))
        return BatchFeature(data, tensor_type=return_tensors)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _encoder_texts(self, text, limit: int, padding: bool | str, truncation: bool | None) -> dict[str, list]:
        """`[CLS]`, a text's ids, `[SEP]`; cut where they are too long unless truncation is False."""
        texts = [text] if isinstance(text, str) else list(text)
        for one in texts:
            if not isinstance(one, str):
                raise TypeError(f"text must be a string or a list of strings, got {type(one).__name__}")
        if not texts:
            raise ValueError("text is an empty list: give at least one text")
        rows = [[self.tokenizer.cls_token_id, *self._ids(one)] for one in texts]
        longest = max(map(len, rows)) + 1
        if truncation is False and longest > limit:
            raise ValueError(f"text makes {longest} tokens, {limit} are allowed: shorten it, or allow truncation")
        rows = [row[: limit - 1] + [self.tokenizer.sep_token_id] for row in rows]
        return self._padded(rows, "right", padding, limit)

    def _padded(self, rows: list[list[int]], side: str, padding: bool | str, limit: int) -> dict[str, list]:
        if padding is False and len({len(row) for row in rows}) > 1:
            raise ValueError("padding=False takes texts of one length, these differ: pass padding=True")
        length = limit if padding == "max_length" else None
        return self.tokenizer.pad({"input_ids": rows}, padding=padding, max_length=length, padding_side=side)

    def _prompt_ids(
        self, text: str | list[str] | None, count: int | None, limit: int, cut: bool = False
    ) -> list[list[int]]:
        """`[DEC]` and the prompt's ids, a row a text (one row for all if there is just one prompt)."""
        texts = [self.prompt] if text is None else list(text) if isinstance(text, (list, tuple)) else [text]
        for prompt in texts:
            if not isinstance(prompt, str):
                raise TypeError(f"text must be a string or a list of strings, got {type(prompt).__name__}")
            if text is not None and not prompt.strip():
                raise ValueError("text is an empty prompt; leave it out to caption without one")
        rows = [[self.tokenizer.bos_token_id, *self._ids(prompt)][: limit - 1 if cut else None] for prompt in texts]
        for row, prompt in zip(rows, texts, strict=True):
            if len(row) >= limit:
                raise ValueError(
                    f"text has {len(row) - 1} tokens, the prompt may have {limit - 2}: shorten {prompt[:40]!r}..."
                )
        if count is not None and len(rows) == 1:
            rows = rows * count
        if count is not None and len(rows) % count:
            raise ValueError(f"text has {len(rows)} prompts for {count} images; give one, or one an image")
        return rows

    def _captions(self, suffix, text, count, limit, padding, truncation) -> dict[str, list]:
        captions = [suffix] if isinstance(suffix, str) else list(suffix)
        if captions and not isinstance(captions[0], str):
            if len({len(group) for group in captions}) != 1:
                raise ValueError("suffix must hold the same number of captions for every image")
            captions = [caption for group in captions for caption in group]
        if not captions or (count is not None and len(captions) % count):
            raise ValueError(f"suffix has {len(captions)} captions for {count} images; give as many for each image")
        prompts = self._prompt_ids(text, None, limit)
        if len(captions) % len(prompts):
            raise ValueError(f"text has {len(prompts)} prompts for {len(captions)} captions")
        share = len(captions) // len(prompts)
        rows = [[*prompts[i // share], *self._ids(caption)] for i, caption in enumerate(captions)]
        longest = max(map(len, rows)) + 1
        if truncation is False and longest > limit:
            raise ValueError(f"suffix makes {longest} tokens, {limit} are allowed: shorten it, or allow truncation")
        rows = [row[: limit - 1] + [self.tokenizer.sep_token_id] for row in rows]
        batch = self._padded(rows, "right", padding, limit)
        length = len(batch["input_ids"][0])
        batch["labels"] = [
            [-100] * len(prompts[i // share]) + row[len(prompts[i // share]) :] + [-100] * (length - len(row))
            for i, row in enumerate(rows)
        ]
        return batch

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]
