"""Classification by names alone: an image belongs to the label whose prompts it is most similar to."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch

from hfvlm.embedder import Embedder


#: sets of prompts known from CLIP (https://arxiv.org/abs/2103.00020): the one of its figures, seven that together do
#: nearly as well on ImageNet as its eighty, and those for satellite pictures, pets and food
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}.",),
    "ensemble": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "satellite": ("a centered satellite photo of {}.", "a centered satellite photo of a {}."),
    "pet": ("a photo of a {}, a type of pet.",),
    "food": ("a photo of {}, a type of food.",),
}


class ZeroShotClassifier:
    """Classifies images into labels that the model was never trained on.

    ```python
    >>> classify = ZeroShotClassifier(model, processor, ["dog", "cat"], TEMPLATES["ensemble"])
    >>> classify.predict(["photo.jpg"])
    tensor([[0.98, 0.02]])
    ```

    Args:
        model, processor: a two-tower model and its processor, as `Embedder` takes them.
        labels: what there is to choose from.
        templates: prompts with a `{}` for the label. Each label's weights are the mean of its prompts' embeddings,
            made a vector of length 1 again.
        batch_size: images or prompts at a time.

    Raises:
        ValueError: no label, an empty or a repeated one; no template, or one without `{}`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        labels: Sequence[str],
        templates: Sequence[str] = TEMPLATES["photo"],
        batch_size: int = 32,
    ):
        self.labels = check_labels(labels)
        self.templates = check_templates(templates)
        self.embedder = Embedder(model, processor, batch_size)

    @cached_property
    def weights(self) -> torch.Tensor:
        """`[labels, dim]`, of length 1: computed at first use, and kept."""
        prompts = [template.replace("{}", label) for label in self.labels for template in self.templates]
        embeds = self.embedder.texts(prompts).view(len(self.labels), len(self.templates), -1)
        return torch.nn.functional.normalize(embeds.mean(dim=1), dim=-1)

    def predict(self, images: Sequence[Any]) -> torch.Tensor:
        """`[images, labels]`: probabilities, of each label against the others (of each by itself where the model
        learned with the sigmoid loss).

        Args:
            images: as `open_image` takes them.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no image.
        """
        return self.probabilities(self.embedder.images(images))

    def stream(self, images: Any, on_error: Any = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """As `predict`, a batch at a time, with the images' positions; arguments as `Embedder.image_batches`."""
        for positions, embeds in self.embedder.image_batches(images, on_error):
            yield positions, self.probabilities(embeds)

    def probabilities(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """`[images, labels]`, of image embeddings `[images, dim]`."""
        logits = self.embedder.logits(image_embeds, self.weights)
        return logits.sigmoid() if self.embedder.is_sigmoid else logits.softmax(dim=-1)


def check_labels(labels: Sequence[str]) -> list[str]:
    """The labels, if they can be told apart.

    Raises:
        TypeError: a single string, or a label that is no string.
        ValueError: none at all, an empty or a repeated one.
    """
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError("labels must be a list of strings")
    labels = [label.strip() for label in labels]
    if not any(labels):
        raise ValueError("labels is empty: name at least one")
    if "" in labels:
        raise ValueError(f"labels holds an empty one, at position {labels.index('')}")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"labels holds {', '.join(map(repr, twice))} more than once: name each label once")
    return labels


def check_templates(templates: Sequence[str]) -> list[str]:
    """The templates, if each has a place for the label.

    Raises:
        TypeError: a single string, or a template that is no string.
        ValueError: none at all, or one without `{}`.
    """
    if isinstance(templates, str) or not all(isinstance(template, str) for template in templates):
        raise TypeError("templates must be a list of strings")
    if not templates:
        raise ValueError("templates is empty: pass at least one, such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} where the label goes, as in 'a photo of a {{}}.'")
    return list(templates)
