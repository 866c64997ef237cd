"""The image-text-retrieval pipeline: the images of a collection that fit a text or an image, or the texts that fit."""

import os
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from transformers.utils import logging

from hfvlm.embedder import Embedder
from hfvlm.images import ImageError, image_of, images_in, open_image
from hfvlm.nearest import nearest
from hfvlm.pipelines.base import VlmPipeline
from hfvlm.reranking import check_judges, judge_pairs


logger = logging.get_logger(__name__)


class ImageTextRetrievalPipeline(VlmPipeline):
    """Searches a collection of images or of texts.

    ```python
    >>> pipe = hfvlm.pipeline("image-text-retrieval", model=folder)
    >>> pipe.index(images="photos")
    >>> pipe("a dog on the grass", top_k=2)
    [{'score': 0.31, 'image': 'photos/dog.jpg', 'index': 4}, {'score': 0.24, 'image': 'photos/cat.jpg', 'index': 1}]
    >>> pipe("a dog on the grass", rerank=16)  # by a model that reads images and texts together (ALBEF, BLIP)
    [{'score': 3.1, 'image': 'photos/dog.jpg', 'index': 4, 'similarity': 0.31}, ...]
    ```

    Args:
        processor: takes `images=` and `text=`; it brings the tokenizer and the image processor.

    The other arguments are those of `transformers.Pipeline` and those of a call.
    """

    name = "image-text-retrieval"

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        super().__init__(model=model, processor=processor, **kwargs)
        self._embedder = Embedder(self.model, processor)
        self._kind: str | None = None
        self._items: Sequence[Any] = ()
        self._rows: list[int] = []
        self._embeds = torch.empty(0, 0)
        self._tokens: torch.Tensor | None = None

    def index(
        self,
        images: str | os.PathLike | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        batch_size: int = 8,
        skip_unreadable: bool = False,
        keep_tokens: bool = True,
    ) -> "ImageTextRetrievalPipeline":
        """Embeds the collection that is searched from now on, in place of one before.

        Args:
            images: a folder, which is searched for image suffixes; or a list or dataset column of images: paths, URLs,
                PIL images, bytes, or rows with an "image".
            texts: strings, instead of images.
            batch_size: images or texts at a time.
            skip_unreadable: leave images out that cannot be used, with a warning, instead of raising the error.
            keep_tokens: of a model that judges pairs, keep the images' tokens in memory for `rerank`: with ViT-B/16
                at 384 pixels 0.9 MB an image in bfloat16. False: the nearest images are opened again.

        Returns:
            the pipeline.

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: neither images nor texts, both, or an empty collection.
            TypeError: a text that is no string.
        """
        if (images is None) == (texts is None):
            raise ValueError("pass the collection to search as images= or as texts=, and not both")
        kind, items = ("image", images) if texts is None else ("text", texts)
        if isinstance(items, (str, os.PathLike)):
            if kind == "text" or not os.path.isdir(items):
                wanted = "list of texts" if kind == "text" else "folder, and no list of images"
                raise ValueError(f"{kind}s={os.fspath(items)!r} is no {wanted}")
            items = list(images_in(items))
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            items = list(items)
        if not len(items):
            raise ValueError(f"{kind}s is empty: there is nothing to search")
        if kind == "text" and (
            empty := [i for i, item in enumerate(items) if isinstance(item, str) and not item.strip()]
        ):
            raise ValueError(f"texts[{empty[0]}] is empty: leave it out")

        def skip(position: int, error: ImageError) -> None:
            logger.warning(f"left out of the index: {error}")

        embedder = Embedder(self.model, self.processor, batch_size)
        tokens = [] if kind == "image" and keep_tokens and hasattr(self.model, "match") else None
        if kind == "text":
            batches = list(embedder.text_batches(items))
        else:
            batches = list(self._image_batches(embedder, items, skip if skip_unreadable else None, tokens))
        if not batches:
            raise ValueError(f"none of the {len(items)} images can be used")
        self._kind, self._items = kind, items
        self._rows = [position for positions, _ in batches for position in positions]
        self._embeds = torch.cat([embeds for _, embeds in batches])
        self._tokens = None if tokens is None else torch.cat(tokens)
        return self

    @staticmethod
    def _image_batches(
        embedder: Embedder, items: Sequence[Any], on_error: Any, tokens: list[torch.Tensor] | None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """As the embedder's; `tokens` takes in each batch's, on the CPU."""
        for positions, pixels in embedder.loader.stream(items, embedder.batch_size, on_error):
            embeds, states = embedder.encode(pixel_values=pixels)
            if tokens is not None:
                tokens.append(states.cpu())
            yield positions, embeds

    def _sanitize_parameters(
        self, top_k: int | None = None, timeout: float | None = None, rerank: int | None = None
    ) -> tuple[dict, dict, dict]:
        for name, value in (("top_k", top_k), ("rerank", rerank)):
            if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if rerank is not None:
            check_judges(self.model)
        return (
            {} if timeout is None else {"timeout": timeout},
            {} if rerank is None else {"rerank": rerank},
            {} if top_k is None else {"top_k": top_k},
        )

    def __call__(self, queries: Any = None, **kwargs: Any) -> Any:
        """Searches the collection.

        Args:
            queries: a text (any string is one, also a path), an image (a `Path`, PIL image, bytes, or a mapping with
                a path, URL or image as its "image"), or a list of these.
            top_k: results a query, at most; 5 if left out.
            rerank: so many of the nearest are judged again, each read together with the query, and the best of these
                are the results; all where there are fewer. It takes a model that judges pairs, and texts on one side,
                images on the other.
            batch_size: queries at a time, all of one kind.
            timeout: seconds to wait for a URL's server.

        Returns:
            `[{"score": cosine similarity, "image" or "text": the item, "index": its place in the collection}]`, best
            first; a list of these for a list. With `rerank` the score is the judgement, the logit of a match (with
            the similarity added if the model is evaluated like that), and "similarity" the cosine.

        Raises:
            RuntimeError: before `index()`.
            ImageError: an image that cannot be used, by name.
            ValueError: no query, or an empty text; `rerank` by a model that judges no pairs, or of two of a kind.
        """
        if self._kind is None:
            raise RuntimeError("there is nothing to search yet: call index(images=...) or index(texts=...) first")
        queries = self.given_images(queries, kwargs, "a query: a text, an image, or a list of them")
        if not isinstance(queries, (list, tuple)):
            return super().__call__(queries, **kwargs)
        kinds = {isinstance(query, str) for query in queries}
        if kwargs.get("batch_size", self._batch_size or 1) > 1 and len(kinds) > 1:
            raise ValueError("queries of one batch must be all texts or all images: pass them apart, or batch_size=1")
        return super().__call__(list(queries), **kwargs) if queries else []

    def preprocess(self, inputs: Any, timeout: float | None = None) -> dict[str, Any]:
        """One query: an image as the model's input of a batch of one, a text as it is, to be padded later."""
        if isinstance(inputs, str):
            if not inputs.strip():
                raise ValueError("the query is an empty text: say what to look for")
            return {"text": inputs}
        return self._embedder.loader([open_image(image_of(inputs), timeout)])

    def _forward(self, model_inputs: dict[str, Any], rerank: int | None = None) -> dict[str, torch.Tensor]:
        texts = model_inputs.pop("text", None)
        texts = [texts] if isinstance(texts, str) else texts
        kind = "image" if texts is None else "text"
        if rerank is None:
            embeds = self._embedder.embed(**model_inputs) if texts is None else self._embedder.texts(texts)
            return {"embeds": embeds}
        if kind == self._kind:
            raise ValueError(
                f"rerank judges images with texts, not {kind}s with {kind}s: leave it out for such a query"
            )
        if texts is None:
            embeds, tokens = self._embedder.encode(**model_inputs)
        else:
            embeds = self._embedder.texts(texts)
        similarities, rows = nearest(embeds, self._embeds, rerank)
        found, candidate = rows.unique(return_inverse=True)
        query = torch.arange(len(rows))[:, None].expand_as(rows)
        if texts is None:
            texts, images, of_text = [self._items[self._rows[row]] for row in found.tolist()], query, candidate
        else:
            tokens, images, of_text = self._image_tokens(found), candidate, query
        scores = self._judge(tokens, texts, images.flatten(), of_text.flatten()).view_as(similarities)
        if self.model.rerank_adds_similarity:
            scores = scores + similarities
        return {"embeds": embeds, "scores": scores, "similarities": similarities, "rows": rows}

    def _judge(
        self, tokens: torch.Tensor, texts: list[str], images: torch.Tensor, of_text: torch.Tensor
    ) -> torch.Tensor:
        """As `judge_pairs`, of texts as they are."""
        device = self.model.device
        batch = {name: value.to(device) for name, value in self._embedder.tokens(texts).items()}
        pairs = images.to(device), of_text.to(device)
        return judge_pairs(self.model, tokens, batch["input_ids"], batch["attention_mask"], *pairs).cpu()

    def _image_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Tokens of images of the collection, kept or of the images opened again, where the model is."""
        if self._tokens is not None:
            return self._tokens[rows].to(self.model.device)
        items = [self._items[self._rows[row]] for row in rows.tolist()]
        batches = self._embedder.loader.stream(items, self._embedder.batch_size, None)
        return torch.cat([self._embedder.encode(pixel_values=pixels)[1] for _, pixels in batches])

    def postprocess(self, model_outputs: dict[str, torch.Tensor], top_k: int = 5) -> list[dict[str, Any]]:
        if "scores" not in model_outputs:
            similarities, rows = nearest(model_outputs["embeds"], self._embeds, top_k)
            found = zip(similarities[0].tolist(), rows[0].tolist(), strict=True)
            return [self._result(score, row) for score, row in found]
        judged = [model_outputs[name][0].tolist() for name in ("scores", "similarities", "rows")]
        judged = sorted(zip(*judged, strict=True), key=lambda one: -one[0])
        return [{**self._result(score, row), "similarity": similarity} for score, similarity, row in judged[:top_k]]

    def _result(self, score: float, row: int) -> dict[str, Any]:
        index = self._rows[row]
        return {"score": score, self._kind: self._items[index], "index": index}
