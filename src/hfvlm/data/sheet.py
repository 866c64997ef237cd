"""A contact sheet: the images that a search found, with rank, score and path, as one picture."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from hfvlm.data.files import replacing
from hfvlm.images import ImageError, open_image


#: sizes in pixels
CELL, GAP, ROW_GAP, MARGIN = 232, 18, 26, 28
TITLE, SCORE, NAME = 28, 17, 15

PAPER, TILE, INK, FAINT = "white", "#f1f2f4", "#1b1f24", "#6a737d"


def write_sheet(
    path: str | os.PathLike,
    results: Sequence[tuple[float, str]],
    title: str,
    columns: int = 4,
    folder: str | os.PathLike | None = None,
) -> None:
    """Draws a contact sheet and writes it at once.

    Args:
        path: of the picture; its suffix says the format.
        results: score and path of each image, best first.
        title: what was searched for.
        columns: images a row, at most.
        folder: that was searched: paths are shown as they are in it. None: only the files' names are shown.

    Raises:
        ValueError: no result.
        OSError: the picture cannot be written.
    """
    sheet = draw_sheet(results, title, columns, folder)
    with replacing(path) as new:
        said = PngImagePlugin.PngInfo()
        said.add_text("Software", "hfvlm")
        sheet.save(new, pnginfo=said)


def is_sheet(path: str | os.PathLike) -> bool:
    """Whether a file is a contact sheet that `write_sheet` wrote as PNG; of a file that cannot be read, it is none."""
    try:
        with open(path, "rb") as file:
            return b"tEXtSoftware\0hfvlm" in file.read(128)  # the text follows the header of 33 bytes
    except OSError:
        return False


def draw_sheet(
    results: Sequence[tuple[float, str]], title: str, columns: int = 4, folder: str | os.PathLike | None = None
) -> Image.Image:
    """As `write_sheet`, the picture itself. An image that cannot be read (any more) leaves its place empty."""
    if not results:
        raise ValueError("results is empty: there is nothing to draw")
    columns = max(1, min(columns, len(results)))
    rows = -(-len(results) // columns)
    captions = SCORE + NAME + 16
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    head = MARGIN + TITLE + 20
    height = head + rows * (CELL + captions) + (rows - 1) * ROW_GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    fonts = {size: find_font(size) for size in (TITLE, SCORE, NAME)}
    shown = shorten(drawable(" ".join(title.split()), fonts[TITLE]), fonts[TITLE], width - 2 * MARGIN)
    pen.text((MARGIN, MARGIN), shown, fill=INK, font=fonts[TITLE], anchor="lt")
    for number, (score, path) in enumerate(results):
        left = MARGIN + number % columns * (CELL + GAP)
        top = head + number // columns * (CELL + captions + ROW_GAP)
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=TILE)
        picture = _thumbnail(path)
        if picture is None:
            pen.text((left + CELL // 2, top + CELL // 2), "cannot be read", FAINT, fonts[NAME], anchor="mm")
        else:
            sheet.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
        line = top + CELL + 8
        pen.text((left, line), f"{number + 1}", fill=INK, font=fonts[SCORE], anchor="lt")
        pen.text((left + CELL, line), f"{score:.3f}", fill=INK, font=fonts[SCORE], anchor="rt")
        name = Path(path).name if folder is None else Path(path).relative_to(folder).as_posix()
        name = shorten(drawable(name, fonts[NAME]), fonts[NAME], CELL)
        pen.text((left, line + SCORE + 4), name, fill=FAINT, font=fonts[NAME], anchor="lt")
    return sheet


def _thumbnail(path: str) -> Image.Image | None:
    """The upright image, as large as fits a cell; None if it cannot be read."""
    try:
        image = open_image(path)
    except ImageError:
        return None
    scale = CELL / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def find_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans where the system has it, which knows accents, Greek and Cyrillic; else the font within Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text in characters that the font has: letters without the accents that it lacks, else question marks."""
    missing = _outline("\uffff", font)  # no character: what is drawn for it is drawn for all that the font lacks

    def one(character: str) -> str:
        if _outline(character, font) != missing:
            return character
        plain = unicodedata.normalize("NFKD", character)
        plain = "".join(part for part in plain if not unicodedata.combining(part))
        return "".join(part if _outline(part, font) != missing else "?" for part in plain)

    return "".join(map(one, unicodedata.normalize("NFC", text)))  # some systems name files with the marks apart


def _outline(character: str, font: ImageFont.FreeTypeFont) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or its two ends around an ellipsis: what is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        short = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return "..."
