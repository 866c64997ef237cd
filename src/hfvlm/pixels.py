"""Images to pixel values in threads: to the bit what the stock image processor makes of them, and faster.

Pillow decodes and resizes without Python's lock, so threads share the work. What the stock processor then computes for
every pixel (to float64, scale, to float32, subtract, divide) is looked up: a channel has only 256 values.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend

from hfvlm.images import ImageError, image_of, open_image


#: what an image processor does to pixels; one that brings its own version of any is left to do all of it itself
_STEPS = (
    "__call__",
    "preprocess",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "_preprocess",
    "process_image",
    "convert_to_rgb",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
)


def cpu_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PixelLoader:
    """Decodes and preprocesses images in threads.

    ```python
    >>> load = PixelLoader(processor.image_processor)
    >>> model(**load(["a.jpg", "b.jpg"]))
    >>> DataLoader(paths, batch_size=32, collate_fn=load)
    ```

    Args:
        image_processor: a stock one. What those on PIL do that resize, crop, rescale and normalise in the common way
            is computed here; any other is called, in threads all the same.
        threads: None: as many as there are cores.

    Raises:
        ValueError: `threads` below 1.
    """

    def __init__(self, image_processor: Any, threads: int | None = None):
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for one a core; got {threads}")
        self.image_processor = image_processor
        self.threads = threads or cpu_threads()
        self.steps = PixelSteps(image_processor) if PixelSteps.cover(image_processor) else None

    def __call__(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        """`{"pixel_values": [n, channels, h, w]}` of `n` images.

        Args:
            images: what `open_image` takes, or mappings with that as their "image".

        Raises:
            ImageError: an image that cannot be used, by name.
            ValueError: no image, or images that keep different sizes.
        """
        images = list(images)
        if not images:
            raise ValueError("images is empty: pass at least one")
        [(_, pixels)] = self.stream(images, len(images))
        return {"pixel_values": pixels}

    def stream(
        self, images: Iterable[Any], batch_size: int, on_error: Callable[[int, ImageError], None] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Batches in order, the next ones prepared while the caller works on one.

        Args:
            images: as in a call.
            batch_size: images at a time.
            on_error: is told the position and the error of each image that cannot be used, which is left out; None:
                the error is raised.

        Yields:
            the positions of a batch's images in `images`, and their pixels `[n, channels, h, w]`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        numbered = enumerate(images)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="pixels")
        pending: deque[tuple[list[int], torch.Tensor | None, list[Future]]] = deque()
        try:
            while batch := list(islice(numbered, batch_size)):
                pending.append(self._submit(pool, batch))
                if len(pending) > 2:
                    yield from self._finish(*pending.popleft(), on_error)
            while pending:
                yield from self._finish(*pending.popleft(), on_error)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, batch: list[tuple[int, Any]]
    ) -> tuple[list[int], torch.Tensor | None, list[Future]]:
        shape = self.steps.shape if self.steps is not None else None
        pixels = None if shape is None else torch.empty(len(batch), *shape, dtype=self.steps.dtype)
        futures = [
            pool.submit(self._load, image, None if pixels is None else pixels[row].numpy())
            for row, (_, image) in enumerate(batch)
        ]
        return [position for position, _ in batch], pixels, futures

    def _load(self, source: Any, out: np.ndarray | None) -> torch.Tensor | None:
        """One image's pixels `[channels, h, w]`, written to `out` if there is one."""
        image = open_image(image_of(source))
        if self.steps is None:
            return self.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
        if out is not None:
            self.steps(image, out)
            return None
        return torch.from_numpy(self.steps(image))

    @staticmethod
    def _finish(
        positions: list[int],
        pixels: torch.Tensor | None,
        futures: list[Future],
        on_error: Callable[[int, ImageError], None] | None,
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        kept, rows = [], []
        for row, future in enumerate(futures):
            try:
                rows.append(future.result())
                kept.append(row)
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(positions[row], error)
        if not kept:
            return
        if pixels is None:
            sizes = {tuple(row.shape) for row in rows}
            if len(sizes) > 1:
                shown = ", ".join(f"{h} x {w}" for _, h, w in sorted(sizes)[:3])
                raise ValueError(
                    f"images keep different sizes ({shown}): set the image processor's size to one for all"
                )
            pixels = torch.stack(rows)
        elif len(kept) < len(futures):
            pixels = pixels[kept]
        yield [positions[row] for row in kept], pixels


class PixelSteps:
    """What a stock image processor on PIL does to an RGB image, with a table for all that is arithmetic.

    Args:
        image_processor: one that `cover` accepts.
    """

    def __init__(self, image_processor: PilBackend):
        settings = image_processor
        self.size = settings.size if settings.do_resize else None
        self.resample = Image.Resampling.BILINEAR if settings.resample is None else settings.resample
        self.crop = (settings.crop_size.height, settings.crop_size.width) if settings.do_center_crop else None
        ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
        if settings.do_rescale:
            ramp = image_processor.rescale(ramp, settings.rescale_factor)
        if settings.do_normalize:
            ramp = image_processor.normalize(ramp, settings.image_mean, settings.image_std)
        self.table = np.ascontiguousarray(ramp[:, 0])  # [channel, value]
        self.dtype = torch.from_numpy(self.table).dtype

    @staticmethod
    def cover(image_processor: Any) -> bool:
        """Whether these steps are all that the image processor does."""
        kind = type(image_processor)
        if not isinstance(image_processor, PilBackend):
            return False
        if any(getattr(kind, name, None) is not getattr(PilBackend, name, None) for name in _STEPS):
            return False
        settings = image_processor
        if settings.do_pad or settings.input_data_format is not None or not _plain(settings.resample):
            return False
        if settings.do_center_crop and _given(settings.crop_size) != {"height", "width"}:
            return False
        return not settings.do_resize or _given(settings.size) in ({"height", "width"}, {"shortest_edge"})

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """`(channels, h, w)` of every image; None if it depends on the image."""
        if self.crop is not None:
            return (3, *self.crop)
        if self.size is not None and self.size.height:
            return (3, self.size.height, self.size.width)
        return None

    def __call__(self, image: Image.Image, out: np.ndarray | None = None) -> np.ndarray:
        """Pixels `[3, h, w]` of an RGB image, in `out` if given."""
        if self.size is not None:
            image = image.resize(self._resized(image.width, image.height), self.resample)
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))  # black where it is too small, as in the stock
        values = np.asarray(image)
        if out is None:
            out = np.empty((3, *values.shape[:2]), self.table.dtype)
        for channel in range(3):  # "clip": nothing is out of range, and only "raise" makes a copy first
            np.take(self.table[channel], values[..., channel], out=out[channel], mode="clip")
        return out

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) after resizing."""
        if self.size.height:
            return self.size.width, self.size.height
        short, edge = min(width, height), self.size.shortest_edge
        long = int(edge * max(width, height) / short)
        return (edge, long) if width <= height else (long, edge)


def _plain(resample: Any) -> bool:
    """Whether this is Pillow's filter, or its number, or None: not torchvision's."""
    return resample is None or isinstance(resample, int)


def _given(size: Any) -> set[str]:
    """The names of a size's fields that are set."""
    return {name for name, value in vars(size).items() if value} if size is not None else set()
