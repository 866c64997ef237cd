"""Any image file, whatever its encoding, as the upright 8-bit RGB picture that a person would see."""

import base64
import binascii
import io
import os
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps


#: what counts as an image when a folder is searched
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm")
IMAGE_SUFFIXES += (".ppm", ".tif", ".tiff", ".webp")

#: seconds to wait for a server, unless the caller says otherwise
TIMEOUT = 30.0

#: bytes that a URL may send; more is not a photo
MAX_DOWNLOAD = 256 * 2**20

_WITH_ALPHA = {"LA", "La", "PA", "RGBA", "RGBa"}


class ImageError(ValueError):
    """An image that cannot be used; the message names the source and the reason."""


def image_of(source: Any) -> Any:
    """What a mapping has as its "image"; anything else is the image itself.

    Raises:
        ValueError: a mapping without one.
    """
    if not isinstance(source, Mapping):
        return source
    if "image" not in source:
        raise ValueError(f"a row needs an 'image', this one has {', '.join(map(str, source))}")
    return source["image"]


def images_in(folder: str | os.PathLike, problems: list[str] | None = None) -> Iterator[str]:
    """Paths of the images in a folder and the folders in it, sorted, told by their suffix; hidden ones are left out.

    Args:
        problems: gets a message for each folder that cannot be read; None: they are passed over.
    """

    def report(error: OSError) -> None:
        if problems is not None:
            problems.append(str(error))

    for root, folders, files in os.walk(folder, onerror=report):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(root, name)


def open_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Opens an image from anywhere.

    The EXIF rotation is applied, transparency is laid on white, wide grey levels are scaled to 8 bits (16-bit integers
    by 257; other integers and floats by their range if they exceed 8 bits, floats within [0, 1] by 255), and of an
    animation the first frame is taken.

    Args:
        source: a path, an http(s) URL, a base64 data URI, bytes, a binary file object, or a PIL image.
        timeout: seconds to wait for a URL's server; None: 30.

    Returns:
        an RGB image, all in memory.

    Raises:
        ImageError: missing, unreadable, empty, not an image of a format that `IMAGE_SUFFIXES` name (whatever its own
            name), truncated, with NaN or infinite levels, or with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`
            (refused before they are decoded).
    """
    name = _name(source)
    if isinstance(source, Image.Image):
        return _decode(source, name)
    data = _read(source, name, TIMEOUT if timeout is None else timeout)
    if isinstance(data, bytes):
        if not data:
            raise ImageError(f"{name}: is empty (0 bytes)")
        data = io.BytesIO(data)
    try:
        image = Image.open(data, formats=_formats())
    except Exception as error:
        raise _failed(name, error) from error
    with image:
        return _decode(image, name)


@cache
def _formats() -> tuple[str, ...]:
    """PIL's names of the formats that are read. Of the others some run programs: PostScript goes to Ghostscript."""
    known = Image.registered_extensions()
    return tuple(dict.fromkeys(known[suffix] for suffix in IMAGE_SUFFIXES if suffix in known))


def _name(source: Any) -> str:
    """What to call a source in an error: short, whatever it is."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image of {len(source)} bytes"
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
    else:
        text = getattr(source, "filename", None) or getattr(source, "name", None) or type(source).__name__
    text = str(text)
    return text if len(text) <= 300 and not text.startswith("data:") else f"{text[:40]}..."


def _read(source: Any, name: str, timeout: float) -> bytes | Path:
    """The source's bytes, or the path of a file that is there."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if text.startswith(("http://", "https://")):
            return _download(text, name, timeout)
        if text.startswith("data:"):
            return _data_uri(text, name)
        return _file(text, name)
    if hasattr(source, "read"):
        try:
            if hasattr(source, "seekable") and source.seekable():
                source.seek(0)
            data = source.read()
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error
        if isinstance(data, bytes):
            return data
        raise ImageError(f"{name}: is a text file object; open it in binary mode, 'rb'")
    raise ImageError(
        f"{type(source).__name__} is not an image: pass a path, a URL, bytes, a binary file object or a PIL image"
    )


def _file(path: str, name: str) -> Path:
    try:
        if os.path.isdir(path):
            raise ImageError(f"{name}: is a folder, not an image")
        if os.stat(path).st_size == 0 and os.path.isfile(path):
            raise ImageError(f"{name}: is empty (0 bytes)")
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
    except ImageError:
        raise
    except ValueError as error:  # a path with a null character
        raise ImageError(f"{name!r}: not a path ({error})") from error
    return Path(path)


def _download(url: str, name: str, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "hfvlm"})  # some servers refuse urllib's own
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            data = response.read(MAX_DOWNLOAD + 1)
    except Exception as error:  # from the socket, TLS, HTTP or the URL itself, with no common base
        raise ImageError(f"{name}: cannot be downloaded ({error})") from error
    if len(data) > MAX_DOWNLOAD:
        raise ImageError(f"{name}: is larger than {MAX_DOWNLOAD >> 20} MiB")
    return data


def _data_uri(uri: str, name: str) -> bytes:
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise ImageError(f"{name}: only base64 data URIs are read, 'data:image/png;base64,...'")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ImageError(f"{name}: is not valid base64 ({error})") from error


def _failed(name: str, error: Exception) -> ImageError:
    reason = "is not an image that can be read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    if isinstance(error, Image.DecompressionBombError):
        reason = f"has too many pixels: {error}"
    return ImageError(f"{name}: {reason or type(error).__name__}")


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Pixels of an image whose header is read."""
    width, height = image.size
    if not width or not height:
        raise ImageError(f"{name}: has no pixels ({width} x {height})")
    # Image.open only warns up to twice the limit; nothing is allocated before load()
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name}: has too many pixels: {width} x {height}, more than PIL.Image.MAX_IMAGE_PIXELS ({limit})"
        )
    try:
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image)
    except Exception as error:  # a broken file can make PIL's decoders raise nearly anything
        raise _failed(name, error) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    if image.mode == "La":  # has no conversion of its own to RGBA
        image = image.convert("LA")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Wide grey levels `[h, w]` as mode L: scaled, never clipped."""
    levels = np.asarray(image)
    if image.mode.startswith("I;16"):
        levels = levels / 257.0
    else:
        if not np.isfinite(levels).all():
            raise ValueError("holds NaN or infinite levels, which are no grey")
        levels = levels.astype(np.float64)
        low, high = levels.min(), levels.max()
        if image.mode == "F" and low >= 0 and high <= 1:
            levels = levels * 255.0
        elif image.mode == "I" and low >= 0 and 255 < high <= 65535:
            levels = levels / 257.0
        elif low < 0 or high > 255:
            levels = (levels - low) / (high - low or 1.0) * 255.0
    return Image.fromarray(np.rint(levels).astype(np.uint8))
