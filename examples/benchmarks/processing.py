"""From JPEG files to pixel values: transformers' CLIPImageProcessor on PIL images against hfvlm's PixelLoader.

    python examples/benchmarks/processing.py --photos PHOTOS [--size 640x480]

Both sides give the same pixels, which is checked first. Without --photos the files are drawn at random, smooth as
photos are, in the sizes that --size names.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import alternate
from transformers import CLIPImageProcessorPil

from hfvlm.images import images_in
from hfvlm.pixels import PixelLoader, cpu_threads


def draw(folder: str, count: int, sizes: list[str]) -> list[str]:
    """Random smooth pictures with some noise, as JPEG files."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        width, height = map(int, sizes[number % len(sizes)].split("x"))
        coarse = Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        pixels = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(os.path.join(folder, f"{number}.jpg"))
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--size", nargs="+", default=["640x480"], help="of the files that are drawn")
    parser.add_argument("--count", type=int, default=64, help="images a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cpu_threads()}))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.photos:
            paths = [path for path in images_in(args.photos) if path.endswith((".jpg", ".jpeg"))][: args.count]
        else:
            paths = draw(folder, args.count, args.size)
        if not paths:
            raise SystemExit(f"--photos {args.photos}: no JPEG file there")
        stock = CLIPImageProcessorPil()

        def theirs() -> torch.Tensor:
            images = []
            for path in paths:
                with Image.open(path) as image:
                    images.append(image.convert("RGB"))
            return stock(images=images, return_tensors="pt")["pixel_values"]

        loaders = {f"hfvlm, {threads} threads": PixelLoader(stock, threads) for threads in args.threads}
        sides = {name: lambda load=load: load(paths)["pixel_values"] for name, load in loaders.items()}
        expected = theirs()
        for name, side in sides.items():
            if not torch.equal(side(), expected):
                raise SystemExit(f"{name}: other pixels than transformers'")
        seconds = alternate({"transformers": theirs, **sides}, args.rounds)
    print(f"{len(paths)} images, {cpu_threads()} cores, {args.rounds} rounds, identical pixels")
    print("| | images/s | ratio |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {len(paths) / value:.0f} | {seconds['transformers'] / value:.2f} |")


if __name__ == "__main__":
    main()
