"""Images changed at random for training, as BLIP's and LAVIS's recipes change them.

RandAugment, https://arxiv.org/abs/1909.13719, of two operations at level 5 of 10.
"""

from PIL import Image, ImageOps

from hfvlm.models.moco.views import chance, random_crop, uniform


GREY = (128, 128, 128)  # where nothing of the image is left
SHEAR = 0.15
TRANSLATION = 5.0  # pixels, of whatever size the image is
ROTATION = 15.0  # degrees


def _either_way(amount: float) -> float:
    return amount if chance(0.5) else -amount


def _moved(image: Image.Image, inverse: tuple[float, ...]) -> Image.Image:
    """The image by an affine map: its rows say which point of the old image goes to a point of the new one."""
    return image.transform(
        image.size, Image.Transform.AFFINE, inverse, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _rotated(image: Image.Image) -> Image.Image:
    return image.rotate(_either_way(ROTATION), resample=Image.Resampling.BILINEAR, fillcolor=GREY)


#: what may be done; at this level "brightness" and "sharpness" have the factor 1, as "identity"
OPERATIONS = {
    "identity": lambda image: image,
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "brightness": lambda image: image,
    "sharpness": lambda image: image,
    "shear_x": lambda image: _moved(image, (1, _either_way(SHEAR), 0, 0, 1, 0)),
    "shear_y": lambda image: _moved(image, (1, 0, 0, _either_way(SHEAR), 1, 0)),
    "translate_x": lambda image: _moved(image, (1, 0, _either_way(TRANSLATION), 0, 1, 0)),
    "translate_y": lambda image: _moved(image, (1, 0, 0, 0, 1, _either_way(TRANSLATION))),
    "rotate": _rotated,
}


def augmented(image: Image.Image, operations: int = 2) -> Image.Image:
    """An RGB image after so many operations, drawn with replacement, each done with probability 1/2."""
    names = list(OPERATIONS)
    for _ in range(operations):
        name = names[min(int(uniform(0, len(names))), len(names) - 1)]
        if chance(0.5):
            image = OPERATIONS[name](image)
    return image


def training_view(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A random crop of at least half of an RGB image, resized to (width, height), perhaps mirrored, augmented."""
    image = random_crop(image, size, 0.5, Image.Resampling.BICUBIC)
    if chance(0.5):
        image = ImageOps.mirror(image)
    return augmented(image)
