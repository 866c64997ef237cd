"""Random views of an image, as MoCo's three versions draw them; every draw is from torch's random numbers."""

import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


@dataclass(frozen=True)
class ViewRecipe:
    """How one view is drawn: a crop, then these, each with its probability.

    Args:
        smallest_crop: share of the image's area that a crop has at least.
        jitter: greatest change of brightness, contrast and saturation (factors around 1) and hue (share of the
            circle).
        jitter_p, gray_p, blur_p, solarize_p: probabilities.
        gray_first: version 1's order, grey before the jitter.
    """

    smallest_crop: float = 0.2
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    solarize_p: float = 0.0
    gray_first: bool = False


_V1 = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, blur_p=0.0, gray_first=True)
_V3 = {"smallest_crop": 0.08, "jitter": (0.4, 0.4, 0.2, 0.1)}
#: version -> the recipes of its first and second view
RECIPES = {
    "v1": (_V1, _V1),
    "v2": (ViewRecipe(), ViewRecipe()),
    "v3": (ViewRecipe(blur_p=1.0, **_V3), ViewRecipe(blur_p=0.1, solarize_p=0.2, **_V3)),
}
ASPECTS = (3 / 4, 4 / 3)  # width to height of a crop
BLUR = (0.1, 2.0)  # deviation of the Gaussian, in pixels of the view
SOLARIZE_FROM = 128  # values from here on are inverted
ATTEMPTS = 10


def uniform(low: float, high: float) -> float:
    """One number, drawn evenly between two."""
    return torch.empty(()).uniform_(low, high).item()


def chance(probability: float) -> bool:
    """True with a probability."""
    return torch.rand(()).item() < probability


def random_crop(
    image: Image.Image,
    size: tuple[int, int],
    smallest: float,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """A part of an image of random area and shape, resized.

    Args:
        size: (width, height) of the view.
        smallest: share of the image's area that the part has at least.
        resample: how it is resized.
    """
    width, height = image.size
    for _ in range(ATTEMPTS):
        area = width * height * uniform(smallest, 1.0)
        aspect = math.exp(uniform(*map(math.log, ASPECTS)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = torch.randint(width - w + 1, ()).item()
            top = torch.randint(height - h + 1, ()).item()
            break
    else:  # a very long image: the middle, as near to its own shape as allowed
        aspect = min(max(width / height, ASPECTS[0]), ASPECTS[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize(size, resample, box=(left, top, left + w, top + h))


def shift_hue(image: Image.Image, amount: float) -> Image.Image:
    """Turns all colours round the circle by `amount` of it, between -1 and 1."""
    hue, saturation, value = image.convert("HSV").split()
    step = round(amount * 255)
    hue = hue.point([(level + step) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def colour_jitter(image: Image.Image, strength: tuple[float, float, float, float]) -> Image.Image:
    """Changes brightness, contrast, saturation and hue, each by a random amount, in a random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for step in torch.randperm(4).tolist():
        most = strength[step]
        if step == 3:
            image = shift_hue(image, uniform(-most, most))
        else:
            image = enhancers[step](image).enhance(uniform(max(0.0, 1.0 - most), 1.0 + most))
    return image


def random_view(image: Image.Image, size: tuple[int, int], recipe: ViewRecipe) -> Image.Image:
    """One random view of an RGB image.

    Args:
        size: (width, height) of the view.
    """
    image = random_crop(image, size, recipe.smallest_crop)
    steps = [
        (recipe.jitter_p, lambda image: colour_jitter(image, recipe.jitter)),
        (recipe.gray_p, lambda image: image.convert("L").convert("RGB")),
        (recipe.blur_p, lambda image: image.filter(ImageFilter.GaussianBlur(uniform(*BLUR)))),
        (recipe.solarize_p, lambda image: ImageOps.solarize(image, SOLARIZE_FROM)),
        (0.5, ImageOps.mirror),
    ]
    if recipe.gray_first:
        steps[:2] = steps[1::-1]
    for probability, step in steps:
        if probability and chance(probability):
            image = step(image)
    return image
