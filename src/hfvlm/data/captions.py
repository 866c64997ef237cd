"""Captioned images on disk, random views of them, and batches for `Trainer`."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from hfvlm.images import open_image


def read_captions(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """Reads `captions.jsonl`: a line an image, `{"image": relative path, "captions": [...], "split": ...}`.

    Returns:
        the rows of `split` (all if None), `image` resolved against the file's folder.

    Raises:
        ValueError: a line that is not such an object, by file and line; or no row in the split.
    """
    path = Path(path)
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if isinstance(row["captions"], str):
                    raise TypeError("captions is a string, and must be a list of them")
                rows.append({**row, "image": path.parent / row["image"], "captions": list(row["captions"])})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not an object with image and captions ({error})") from error
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        splits = sorted({str(row.get("split")) for row in rows})
        raise ValueError(f"{path} has no row of split {split!r}; it has {', '.join(splits)}")
    return chosen


def seeded(seed: int, epoch: int, index: int) -> torch.Generator:
    """Random numbers of one row in one epoch: the same in any process and order, and after a restart."""
    words = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)


def draw_captions(captions: Sequence[str], count: int, generator: torch.Generator | None = None) -> list[str]:
    """`count` of them in random order, some twice where there are fewer."""
    order = torch.randperm(len(captions), generator=generator)[:count]
    again = torch.randint(len(captions), (count - len(order),), generator=generator)
    return [captions[i] for i in [*order.tolist(), *again.tolist()]]


def random_view(image: Image.Image, generator: torch.Generator | None = None, min_scale: float = 0.7) -> Image.Image:
    """A random crop of at least `min_scale` of the area, each side cut on its own, mirrored every other time."""
    draws = torch.rand(5, generator=generator).tolist()
    width, height = image.size
    low = min_scale**0.5
    w, h = (low + (1 - low) * draws[0]) * width, (low + (1 - low) * draws[1]) * height
    left, top = draws[2] * (width - w), draws[3] * (height - h)
    view = image.crop((round(left), round(top), round(left + w), round(top + h)))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draws[4] < 0.5 else view


class CaptionedImages(Dataset):
    """Rows of `read_captions` as `{"image": PIL image, "captions": [...], "index": the row's number}`.

    Args:
        captions_per_image: that many captions an item, drawn anew each time, and some of them twice where an image
            has fewer; None: all.
        augment: a random view instead of the whole image.

    Raises:
        ValueError: an image without captions, or for None images with different numbers of them: they make no batch.
    """

    def __init__(self, rows: Sequence[dict], captions_per_image: int | None = None, augment: bool = False):
        counts = {len(row["captions"]) for row in rows}
        if 0 in counts and (captions_per_image is not None or len(counts) > 1):
            raise ValueError("rows hold images without captions; leave those out")
        if captions_per_image is None and len(counts) > 1:
            raise ValueError(
                f"the images have {min(counts)} to {max(counts)} captions, and a batch takes one number for all: "
                f"pass captions_per_image={min(counts)}, which draws that many"
            )
        self.rows, self.captions_per_image, self.augment = rows, captions_per_image, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        image = open_image(row["image"])
        captions = row["captions"]
        if self.captions_per_image is not None:
            captions = draw_captions(captions, self.captions_per_image)
        return {"image": random_view(image) if self.augment else image, "captions": captions, "index": index}


def column(items: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """One field of every item."""
    missing = next((item for item in items if name not in item), None)
    if missing is not None:
        raise ValueError(
            f"an item has no {name!r}, only {sorted(missing)}: give the collator items that have one, and "
            "TrainingArguments remove_unused_columns=False, or Trainer drops what the model's forward does not name"
        )
    return [item[name] for item in items]


class CaptionCollator:
    """Items of `CaptionedImages` to a batch: the image once, its captions grouped, unknown words not learned.

    Args:
        processor: a processor with `suffix`, as BLIP's.
        max_length: tokens a caption may have.

    Raises:
        ValueError: when called, an item without one of its fields: `Trainer` needs `remove_unused_columns=False`.
    """

    def __init__(self, processor: Any, max_length: int = 32):
        self.processor, self.max_length = processor, max_length

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.batch(items, images=column(items, "image"))

    def batch(self, items: list[dict[str, Any]], **images: Any) -> dict[str, torch.Tensor]:
        """The captions of `items`, and what the processor makes of `images`."""
        batch = self.processor(suffix=column(items, "captions"), max_length=self.max_length, **images)
        batch["labels"][batch["labels"] == self.processor.tokenizer.unk_token_id] = -100
        return dict(batch)


class PairCollator:
    """Items of `CaptionedImages` to pairs of an image and one of its captions, for a contrastive loss.

    The batch says which image each row shows (`image_ids`), so that an image that is in it twice is no negative of
    itself, and asks for the loss (`return_loss`), also in evaluation.

    Args:
        processor: of a two-tower model.
        max_length: tokens a caption may have; None: the processor's own limit.

    Raises:
        ValueError: when called, an item without one of its fields: `Trainer` needs `remove_unused_columns=False`.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self.processor, self.max_length = processor, max_length

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return self.batch(items, images=column(items, "image"))

    def batch(self, items: list[dict[str, Any]], **images: Any) -> dict[str, Any]:
        """A caption of each item, drawn, and what the processor makes of `images`."""
        texts = [captions[torch.randint(len(captions), ()).item()] for captions in column(items, "captions")]
        batch = self.processor(text=texts, max_length=self.max_length, **images)
        return {**batch, "image_ids": torch.tensor(column(items, "index")), "return_loss": True}


def reading_options(processor: Any) -> dict[str, str]:
    """What a processor whose model also writes texts is told, so that it takes them as texts to be read."""
    return {"task": "encode"} if "task" in inspect.signature(type(processor).__call__).parameters else {}


class GroupedPairCollator:
    """Items of `CaptionedImages` to pairs: each image once, all captions of the item, an image's together.

    What is paired with what, and the loss that is asked for, as `PairCollator` has it. Nothing is drawn here.

    Args:
        processor: of a model that compares images and texts.
        max_length: tokens a caption may have; None: the processor's own limit.

    Raises:
        ValueError: when called, an item without one of its fields: `Trainer` needs `remove_unused_columns=False`;
            items with different numbers of captions.
    """

    def __init__(self, processor: Any, max_length: int | None = None):
        self.processor, self.max_length, self.options = processor, max_length, reading_options(processor)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        return self.batch(items, images=column(items, "image"))

    def batch(self, items: list[dict[str, Any]], **images: Any) -> dict[str, Any]:
        """The captions of `items`, and what the processor makes of `images`."""
        captions = column(items, "captions")
        counts = {len(group) for group in captions}
        if len(counts) > 1:
            raise ValueError(
                f"the images of a batch have {min(counts)} to {max(counts)} captions, pairs take one number for all: "
                f"pass captions_per_image={max(min(counts), 1)} to CaptionedImages"
            )
        texts = [caption for group in captions for caption in group]
        batch = self.processor(text=texts, max_length=self.max_length, **images, **self.options)
        return {**batch, "image_ids": torch.tensor(column(items, "index")), "return_loss": True}
