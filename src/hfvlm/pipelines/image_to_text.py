"""The image-to-text pipeline: a caption for each image, for any model here that reads an image and writes text."""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from hfvlm.images import open_image
from hfvlm.pipelines.base import VlmPipeline


class _Rows(Dataset):
    """A sequence that is no list (a `datasets` dataset, say), so that `Pipeline` streams it row by row."""

    def __init__(self, rows: Sequence):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def _stream(items: Iterable) -> Iterator:
    yield from items


def _is_one(inputs: Any) -> bool:
    """Whether this is a single input rather than a collection of them."""
    single = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping, io.IOBase)
    if isinstance(inputs, single) or hasattr(inputs, "read") or hasattr(inputs, "__array__"):
        return True
    return not hasattr(inputs, "__iter__") and not hasattr(inputs, "__getitem__")


class ImageToTextPipeline(VlmPipeline):
    """Captions images.

    ```python
    >>> pipe = hfvlm.pipeline("image-to-text")
    >>> pipe("photo.jpg")
    [{'generated_text': 'two dogs run across the beach'}]
    >>> pipe(["a.jpg", "b.jpg"], batch_size=2, generate_kwargs={"num_beams": 3})
    ```

    Args:
        processor: takes `images=` and `text=`, and pads prompts; it brings the tokenizer and the image processor.

    The other arguments are those of `transformers.Pipeline` and those of a call.
    """

    name = "image-to-text"
    prepares = "images and prompts"

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if prompt is not None and not isinstance(prompt, str):
            raise TypeError(
                f"prompt must be a string for all images, got {type(prompt).__name__}; for one an image pass rows: "
                '{"image": ..., "prompt": ...}'
            )
        generate = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            if "max_new_tokens" in generate:
                raise ValueError("max_new_tokens is given twice: as an argument, and in generate_kwargs")
            generate["max_new_tokens"] = max_new_tokens
        elif generate.get("max_length") is not None:
            generate.setdefault("max_new_tokens", None)  # else the generation config's would go before
        reading = {"prompt": prompt, "timeout": timeout}
        return {name: value for name, value in reading.items() if value is not None}, generate, {}

    def __call__(self, images: Any = None, **kwargs: Any) -> Any:
        """Captions one image, or each of several.

        Args:
            images: a path, URL, PIL image, bytes or binary file object; a mapping with that as its "image", and
                perhaps its own "prompt"; or a list, generator or dataset of these.
            prompt: what the captions start with, and keep. Without it they start with the processor's own prompt,
                which is cut off.
            max_new_tokens: tokens to write after the prompt.
            generate_kwargs: further arguments of `model.generate`, e.g. `{"num_beams": 3}`.
            batch_size, num_workers: images at a time, and processes that read them.
            timeout: seconds to wait for a URL's server.

        Returns:
            `[{"generated_text": ...}]`, with as many entries as `num_return_sequences`; a list of these for a list,
            and an iterator over them for a generator or a dataset.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: an empty or too long prompt; no image.
        """
        images = self.given_images(images, kwargs)
        if _is_one(images):
            return super().__call__(images, **kwargs)
        if hasattr(images, "__len__") and len(images) == 0:
            return []
        if isinstance(images, (tuple, set, frozenset)):
            images = list(images)
        elif not isinstance(images, (list, Dataset)):
            images = (
                _Rows(images) if hasattr(images, "__getitem__") and hasattr(images, "__len__") else _stream(images)
            )
        return super().__call__(images, **kwargs)

    def preprocess(self, inputs: Any, prompt: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """One image, as the model's inputs of a batch of one; the prompt's ids as a list, to be padded later."""
        image, prompt = self.image_and("prompt", inputs, prompt)
        image = open_image(image, timeout)
        text = {} if prompt is None else {"text": prompt}
        features = self.processor(images=image, return_tensors="pt", **text).to(self.dtype)
        ids = features.pop("input_ids", None)
        features.pop("attention_mask", None)
        return {**features, "prompt_ids": [] if ids is None else ids[0].tolist(), "keep_prompt": prompt is not None}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, torch.Tensor]:
        rows, keep = model_inputs.pop("prompt_ids"), model_inputs.pop("keep_prompt")
        if isinstance(keep, bool):  # a batch of one comes as it is
            rows, keep = [rows], [keep]
        length = max(map(len, rows))
        if length:
            rows = [row or [self._start_token] for row in rows]
            text = self.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
            model_inputs["input_ids"] = text["input_ids"].to(self.device)
            model_inputs["attention_mask"] = text["attention_mask"].to(self.device)
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        if not isinstance(sequences, torch.Tensor):  # with return_dict_in_generate
            sequences = sequences.sequences
        return {
            "sequences": sequences.reshape(len(rows), -1, sequences.shape[-1]),
            "cut": torch.tensor([0 if kept else length for kept in keep]),
        }

    @property
    def _start_token(self) -> int:
        """What `generate` starts a text with that has no prompt."""
        config = self.model.generation_config
        return config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        sequences, cut = model_outputs["sequences"][0], int(model_outputs["cut"][0])
        texts = self.processor.batch_decode(sequences[:, cut:], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]
