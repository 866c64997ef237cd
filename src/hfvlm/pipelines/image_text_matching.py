"""The image-text-matching pipeline: how well texts describe an image, judged pair by pair."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hfvlm.embedder import Embedder
from hfvlm.images import open_image
from hfvlm.pipelines.base import VlmPipeline


class ImageTextMatchingPipeline(VlmPipeline):
    """Judges texts with an image.

    ```python
    >>> pipe = hfvlm.pipeline("image-text-matching", model=folder)
    >>> pipe("photo.jpg", text=["a dog on the grass", "a cat"])
    [{'text': 'a dog on the grass', 'score': 0.97, 'similarity': 0.41}, {'text': 'a cat', 'score': 0.02, ...}]
    ```

    Args:
        model: a retrieval head of a fusion model.
        processor: takes `images=` and `text=`; it brings the tokenizer and the image processor.

    The other arguments are those of `transformers.Pipeline` and those of a call.
    """

    name = "image-text-matching"

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model=model, processor=processor, **kwargs)
        self._embedder = Embedder(self.model, processor)

    @staticmethod
    def check_model(model: Any) -> None:
        if not hasattr(model, "match"):
            raise TypeError(
                f"{type(model).__name__} does not judge pairs of images and texts: use a retrieval head, such as "
                "BlipForImageTextRetrieval"
            )

    def _sanitize_parameters(
        self, text: str | Sequence[str] | None = None, timeout: float | None = None
    ) -> tuple[dict, dict, dict]:
        reading = {"text": text, "timeout": timeout}
        return {name: value for name, value in reading.items() if value is not None}, {}, {}

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Judges texts with one image, or with each of several.

        Args:
            images: a path, URL, PIL image or bytes; a mapping with that as its "image", and perhaps its own "text"; or
                a list of these.
            text: a text or several, judged with every image that has none of its own. The image is encoded once.
            batch_size: images at a time, with all of their texts.
            timeout: seconds to wait for a URL's server.

        Returns:
            `[{"text": ..., "score": the probability that it describes the image, "similarity": their cosine}]`, in the
            order of the texts; a list of these for a list.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no image, no text, or an empty one.
            TypeError: a text that is no string.
        """
        images = kwargs.pop("image", None) if images is None else images
        if text is not None:
            kwargs["text"] = text
        return super().__call__(self.given_images(images, kwargs), **kwargs)

    def preprocess(self, inputs: Any, text: Any = None, timeout: float | None = None) -> dict[str, Any]:
        """One image as the model's input of a batch of one, and its texts as they are."""
        image, text = self.image_and("text", inputs, text)
        if text is not None and not isinstance(text, Iterable):
            raise TypeError(f"text must be a string or a list of strings, got {type(text).__name__}")
        texts = [text] if isinstance(text, str) else list(text or [])
        for one in texts:
            if not isinstance(one, str):
                raise TypeError(f"text must be a string or a list of strings, got {type(one).__name__}")
        if not texts or not all(one.strip() for one in texts):
            raise ValueError("text is empty: say what to judge the image by")
        return {**self._embedder.loader([open_image(image, timeout)]), "texts": texts}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        texts = model_inputs["texts"]
        alone = isinstance(texts[0], str)  # a batch of one comes as it is
        texts = [texts] if alone else texts
        batch = {
            name: value.to(self.device)
            for name, value in self._embedder.tokens([text for own in texts for text in own]).items()
        }
        images, tokens = self._embedder.encode(pixel_values=model_inputs["pixel_values"])
        words, states = self._embedder.encode(**batch)
        counts = torch.tensor([len(own) for own in texts])
        of_text = torch.arange(len(texts)).repeat_interleave(counts)  # the image of each
        logits = self.model.match(
            tokens,
            batch["input_ids"],
            batch["attention_mask"],
            memory_index=None if alone else of_text.to(self.device),
            text_embeds=states if self.model.fusion_layer else None,
        )
        judged = {
            "scores": logits.float().softmax(dim=-1)[:, 1].cpu(),
            "similarities": (images[of_text] * words).sum(dim=-1),
        }
        rows = {name: [part.tolist() for part in value.split(counts.tolist())] for name, value in judged.items()}
        rows["texts"] = texts
        return {name: value[0] for name, value in rows.items()} if alone else rows

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        rows = zip(*(model_outputs[name] for name in ("texts", "scores", "similarities")), strict=True)
        return [{"text": text, "score": score, "similarity": similarity} for text, score, similarity in rows]
