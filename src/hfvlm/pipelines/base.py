"""The base of every pipeline here: a processor brings the tokenizer and the image processor."""

import difflib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Pipeline

from hfvlm.images import image_of


class VlmPipeline(Pipeline):
    """`Pipeline` with a processor, with which it is saved.

    Args:
        model: one that `check_model` takes.
        processor: takes `images=` and `text=`; it brings the tokenizer and the image processor.

    Raises:
        ValueError: no processor.
        TypeError: a model of another kind; when it is made or called, an argument that it does not have.
    """

    #: what it is called and what the processor prepares, in errors
    name, prepares = "", "images and texts"

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        if processor is None:
            raise ValueError(f"{self.name} needs processor=, which prepares {self.prepares} for the model")
        self.check_model(model)
        with self._naming_options("device", "dtype", "task"):
            super().__init__(model=model, processor=processor, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        with self._naming_options():
            return super().__call__(inputs, **kwargs)

    @contextmanager
    def _naming_options(self, *more: str) -> Iterator[None]:
        """Tells the caller, where an argument is unknown, by which names there are some; `more` are others."""
        try:
            yield
        except TypeError as error:
            unknown = re.search(r"_sanitize_parameters\(\) got an unexpected keyword argument '(\w+)'", str(error))
            if unknown is None:
                raise
            names = [*inspect.signature(self._sanitize_parameters).parameters, "batch_size", "num_workers", *more]
            near = difflib.get_close_matches(unknown[1], names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ";"
            raise TypeError(f"{self.name} takes no {unknown[1]!r}{hint} it takes {', '.join(names)}") from None

    @staticmethod
    def check_model(model: Any) -> None:
        """
        Raises:
            TypeError: the pipeline has no use for such a model.
        """

    @staticmethod
    def given_images(
        images: Any, kwargs: dict[str, Any], wanted: str = "images: a path, URL, PIL image, bytes, or several of them"
    ) -> Any:
        """The first argument of a call, which `kwargs` may hold as "inputs", the name that transformers gives it.

        Raises:
            ValueError: there is none; names what is wanted.
        """
        images = kwargs.pop("inputs", None) if images is None else images
        if images is None:
            raise ValueError(f"pass {wanted}")
        return images

    @staticmethod
    def image_and(name: str, inputs: Any, otherwise: Any) -> tuple[Any, Any]:
        """The image of an input, and what goes with it: of a mapping what it has by this name, else `otherwise`.

        Raises:
            ValueError: a mapping without an image.
        """
        own = inputs.get(name) if isinstance(inputs, Mapping) else None
        return image_of(inputs), otherwise if own is None else own

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model and the processor, so that the folder answers `pipeline(task, model=folder)`."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
