"""A contact sheet: the images that a search found, with rank, score and file name, as one picture."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hfvlm.data.files import replacing
from hfvlm.images import ImageError, open_image


#: sizes in pixels
CELL, GAP, ROW_GAP, MARGIN = 232, 18, 26, 28
TITLE, SCORE, NAME = 28, 17, 15

PAPER, TILE, INK, FAINT = "white", "#f1f2f4", "#1b1f24", "#6a737d"


def write_sheet(path: str | os.PathLike, results: Sequence[tuple[float, str]], title: str, columns: int = 4) -> None:
    """Draws a contact sheet and writes it at once.

    Args:
        path: of the picture; its suffix says the format.
        results: score and path of each image, best first.
        title: what was searched for.
        columns: images a row, at most.

    Raises:
        ValueError: no result.
        OSError: the picture cannot be written.
    """
    sheet = draw_sheet(results, title, columns)
    with replacing(path) as new:
        sheet.save(new)


def draw_sheet(results: Sequence[tuple[float, str]], title: str, columns: int = 4) -> Image.Image:
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
    fonts = {size: ImageFont.load_default(size) for size in (TITLE, SCORE, NAME)}
    shown = shorten(" ".join(title.split()), fonts[TITLE], width - 2 * MARGIN)
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
        name = shorten(Path(path).name, fonts[NAME], CELL)
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
