"""Image settings beside a checkpoint, and making them give what a model takes."""

from pathlib import Path
from typing import TypeVar

from transformers.image_processing_utils import BaseImageProcessor


FILES = ("processor_config.json", "preprocessor_config.json")

ImageProcessor = TypeVar("ImageProcessor", bound=BaseImageProcessor)


def stored(kind: type[ImageProcessor], beside: Path | None) -> ImageProcessor | None:
    """The image processor in a folder; None without a folder, or if it has none."""
    if beside is None or not any((beside / name).is_file() for name in FILES):
        return None
    return kind.from_pretrained(beside)


def side_of(images: BaseImageProcessor) -> int:
    """Pixels a side of what an image processor gives.

    Raises:
        ValueError: it gives none that are square.
    """
    size = images.crop_size if images.do_center_crop else images.size
    if not size.height or size.height != size.width:
        raise ValueError(
            f"the image processor gives {size.height}x{size.width}: only squares can be converted; set its size, or "
            "its crop_size and do_center_crop"
        )
    return size.height


def fitted(images: ImageProcessor, side: int) -> ImageProcessor:
    """The image processor itself if it gives `side` pixels a side, or else with its sizes in the same proportion.

    Raises:
        ValueError: as `side_of`.
    """
    given, settings = side_of(images), images.to_dict()
    if given == side:
        return images
    for name in ("size", "crop_size"):
        if settings.get(name):
            settings[name] = {edge: round(n * side / given) for edge, n in dict(settings[name]).items() if n}
    return type(images).from_dict(settings)
