"""Draws photos side by side with their captions below: the picture in the README.

python examples/caption_sheet.py examples/images/*.jpg --output docs/captions.png
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hfvlm import pipeline


def draw(photos: list[Image.Image], captions: list[str], height: int = 300) -> Image.Image:
    """Photos scaled to one height, each with its caption centred below."""
    margin, line, size = 16, 26, 20
    font = ImageFont.load_default(size)
    photos = [photo.resize((round(photo.width * height / photo.height), height)) for photo in photos]
    wrapped = [
        textwrap.wrap(caption, max(1, round(photo.width / (size * 0.5))))
        for photo, caption in zip(photos, captions, strict=True)
    ]
    width = sum(photo.width for photo in photos) + margin * (len(photos) + 1)
    sheet = Image.new("RGB", (width, height + 3 * margin + line * max(map(len, wrapped))), "white")
    canvas, left = ImageDraw.Draw(sheet), margin
    for photo, lines in zip(photos, wrapped, strict=True):
        sheet.paste(photo, (left, margin))
        for row, text in enumerate(lines):
            position = (left + photo.width / 2, height + 2 * margin + row * line)
            canvas.text(position, text, fill="black", font=font, anchor="ma")
        left += photo.width + margin
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="model folder; the built-in one if left out")
    args = parser.parse_args()
    outputs = pipeline("image-to-text", model=args.model)([str(path) for path in args.photos])
    photos = [Image.open(path).convert("RGB") for path in args.photos]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(photos, [output[0]["generated_text"] for output in outputs]).save(args.output)


if __name__ == "__main__":
    main()
