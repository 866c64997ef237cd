"""The visual-reasoning pipeline: whether a statement is true of two images."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch

from hfvlm.images import open_image
from hfvlm.pipelines.base import VlmPipeline
from hfvlm.pixels import PixelLoader
from hfvlm.processing import reading_options


class VisualReasoningPipeline(VlmPipeline):
    """Judges statements about two images.

    ```python
    >>> pipe = hfvlm.pipeline("visual-reasoning", model=folder)
    >>> pipe(["left.jpg", "right.jpg"], text="both images show a dog")
    [{'label': 'True', 'score': 0.93}, {'label': 'False', 'score': 0.07}]
    ```

    Args:
        model: a head for visual reasoning (NLVR2).
        processor: takes `images=` and `text=`; it brings the tokenizer and the image processor.

    The other arguments are those of `transformers.Pipeline` and those of a call.
    """

    name = "visual-reasoning"
    prepares = "images and statements"

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model=model, processor=processor, **kwargs)
        self._loader = PixelLoader(processor.image_processor)
        self._reading = reading_options(processor)

    @staticmethod
    def check_model(model: Any) -> None:
        if "pixel_values_second" not in inspect.signature(model.forward).parameters:
            raise TypeError(
                f"{type(model).__name__} does not read two images: use a head for visual reasoning, such as "
                "BlipForVisualReasoning"
            )

    def _sanitize_parameters(self, text: str | None = None, timeout: float | None = None) -> tuple[dict, dict, dict]:
        reading = {"text": text, "timeout": timeout}
        return {name: value for name, value in reading.items() if value is not None}, {}, {}

    def __call__(self, images: Any = None, text: str | None = None, **kwargs: Any) -> Any:
        """Judges a statement about two images, or one about each of several pairs.

        Args:
            images: two images, the first (left) and the second, each a path, URL, PIL image or bytes; a mapping with
                them as its "image" and "image_second", and perhaps its own "text"; or a list of these pairs and
                mappings.
            text: the statement about every pair that has none of its own.
            batch_size: pairs at a time.
            timeout: seconds to wait for a URL's server.

        Returns:
            `[{"label": a class by its name in the model's config, "score": its probability}]`, the likeliest first; a
            list of these for a list.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no images, one image, or more than two; no statement, or an empty one.
            TypeError: a statement that is no string.
        """
        images = self.given_images(images, kwargs, "images: two of them, [first, second], or a list of such pairs")
        if text is not None:
            kwargs["text"] = text
        if isinstance(images, (list, tuple)) and not any(isinstance(item, (list, tuple, Mapping)) for item in images):
            images = self._pair(images)
        elif isinstance(images, (list, tuple)):
            images = [self._pair(item) for item in images]
        elif not hasattr(images, "__iter__") or isinstance(images, (str, bytes, bytearray, Mapping, os.PathLike)):
            images = self._pair(images)
        return super().__call__(images, **kwargs)

    @staticmethod
    def _pair(images: Any) -> Mapping[str, Any]:
        """Two images as a mapping.

        Raises:
            ValueError: these are not two.
        """
        if isinstance(images, Mapping):
            missing = [name for name in ("image", "image_second") if images.get(name) is None]
            if missing:
                raise ValueError(
                    f"a statement is about two images: a row needs {' and '.join(map(repr, missing))}, this one has "
                    f"{', '.join(map(str, images)) or 'nothing'}"
                )
            return images
        count = len(images) if isinstance(images, (list, tuple)) else 1
        if count != 2:
            raise ValueError(
                f"a statement is about two images, got {count or 'none'}: pass [first, second], or a list of such "
                "pairs"
            )
        return {"image": images[0], "image_second": images[1]}

    def preprocess(self, inputs: Any, text: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Two images and their statement as the model's inputs of a batch of one."""
        inputs = self._pair(inputs)
        text = inputs.get("text", text)
        if text is not None and not isinstance(text, str):
            raise TypeError(f"text must be a string, got {type(text).__name__}")
        if not (text or "").strip():
            raise ValueError("text is empty: say what is to be judged about the images")
        first, second = (self._loader([open_image(inputs[name], timeout)]) for name in ("image", "image_second"))
        words = self.processor(text=[text], return_tensors="pt", **self._reading)
        return {"pixel_values": first["pixel_values"], "pixel_values_second": second["pixel_values"], **words}

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtype = self.model.dtype
        inputs = {
            name: value.to(self.device, dtype if name.startswith("pixel") else None)
            for name, value in model_inputs.items()
        }
        return {"scores": self.model(**inputs).logits.float().softmax(dim=-1)}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        names = self.model.config.id2label
        scores = enumerate(model_outputs["scores"][0].tolist())
        return [{"label": names[i], "score": score} for i, score in sorted(scores, key=lambda one: -one[1])]
