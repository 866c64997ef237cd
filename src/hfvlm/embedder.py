"""Images and texts to vectors of length 1 in the joint space of a two-tower model, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from hfvlm.images import ImageError
from hfvlm.pixels import PixelLoader
from hfvlm.processing import reading_options


class Embedder:
    """Embeds images and texts, and says what their similarities mean to the model.

    ```python
    >>> embed = Embedder(model, processor)
    >>> embed.texts(["a dog"]) @ embed.images(["dog.jpg", "cat.jpg"]).T
    ```

    Args:
        model: a two-tower model: of this package, or any with `get_image_features` and `get_text_features` whose
            `pooler_output` is in the joint space, as transformers' CLIP and SigLIP. It is put into evaluation mode.
        processor: the model's own.
        batch_size: images or texts at a time. On a CPU larger ones are slower: their activations are fresh memory.
        threads: that read images; None: as many as there are cores.

    Raises:
        TypeError: the model has no joint space of images and texts, or the processor no image processor.
        ValueError: a `batch_size` or `threads` below 1.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 8, threads: int | None = None):
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise TypeError(
                f"{type(model).__name__} does not embed images and texts in one space: use a two-tower model, such as "
                "ClipModel"
            )
        if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
            raise TypeError(
                f"{type(processor).__name__} must have an image processor and a tokenizer: load it with AutoProcessor"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        self.loader = PixelLoader(processor.image_processor, threads)

    def images(self, images: Sequence[Any]) -> torch.Tensor:
        """`[n, dim]` float32 on the CPU, of `n` images as `open_image` takes them.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no image.
        """
        return self._all(self.image_batches(images), "images")

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """`[n, dim]` float32 on the CPU, of `n` texts.

        Raises:
            TypeError: a text that is no string.
            ValueError: no text.
        """
        return self._all(self.text_batches(texts), "texts")

    @staticmethod
    def _all(batches: Iterator[tuple[list[int], torch.Tensor]], name: str) -> torch.Tensor:
        embeds = [batch for _, batch in batches]
        if not embeds:
            raise ValueError(f"{name} is empty: pass at least one")
        return torch.cat(embeds)

    def image_batches(
        self, images: Iterable[Any], on_error: Callable[[int, ImageError], None] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Positions in `images` and their vectors, a batch at a time; the next batches are read meanwhile.

        Args:
            on_error: is told the position and error of each image that cannot be used, which is left out; None: the
                error is raised.
        """
        for positions, pixels in self.loader.stream(images, self.batch_size, on_error):
            yield positions, self.embed(pixel_values=pixels)

    def text_batches(self, texts: Iterable[str]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Positions in `texts` and their vectors, a batch at a time."""
        numbered = enumerate(texts)
        while batch := list(islice(numbered, self.batch_size)):
            for _, text in batch:
                if not isinstance(text, str):
                    raise TypeError(f"a text must be a string, got {type(text).__name__}")
            yield [position for position, _ in batch], self.embed(**self.tokens([text for _, text in batch]))

    def tokens(self, texts: list[str]) -> Mapping[str, torch.Tensor]:
        """The text tower's inputs, of texts cut where they are too long."""
        stock = reading_options(self.processor)
        if type(self.processor).__module__.startswith("transformers."):  # pads and cuts only when it is told to
            stock = {"padding": "max_length" if self.is_sigmoid else True, "truncation": True}
        return self.processor(text=texts, return_tensors="pt", **stock)

    def embed(self, **inputs: torch.Tensor) -> torch.Tensor:
        """`[n, dim]` float32 on the CPU, of the inputs of one tower: of images if there are `pixel_values`.

        Raises:
            ValueError: the model gives features that are not finite, which have no similarities.
        """
        return self.encode(**inputs)[0]

    @torch.inference_mode()
    def encode(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `embed`, and the tokens `[n, tokens, width]` of the tower, where the model is; None if it gives none."""
        model = self.model
        features = model.get_image_features if "pixel_values" in inputs else model.get_text_features
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        outputs = features(**inputs)
        embeds = torch.nn.functional.normalize(outputs.pooler_output.float(), dim=-1).cpu()
        if not embeds.isfinite().all():
            raise ValueError(
                f"{type(model).__name__} gives NaN or infinite features in {model.dtype}: its weights are broken, or "
                "their numbers outgrow this precision; try float32 (--dtype fp32)"
            )
        return embeds, getattr(outputs, "last_hidden_state", None)

    @torch.inference_mode()
    def logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """`[images, texts]`: similarities as the model scales them.

        Raises:
            TypeError: the model does not say how.
        """
        if hasattr(self.model, "scale_and_bias"):
            scale, bias = self.model.scale_and_bias()
        elif hasattr(self.model, "logit_scale"):
            scale, bias = self.model.logit_scale.exp(), getattr(self.model, "logit_bias", None)
        else:
            raise TypeError(f"{type(self.model).__name__} has neither scale_and_bias() nor logit_scale")
        logits = image_embeds @ text_embeds.t() * scale.float().cpu()
        return logits if bias is None else logits + bias.float().cpu()

    @property
    def is_sigmoid(self) -> bool:
        """Whether the model learned each pair by itself (SigLIP), rather than one text against the others."""
        config = self.model.config
        return getattr(config, "objective", None) == "sigmoid" or config.model_type.startswith("siglip")
