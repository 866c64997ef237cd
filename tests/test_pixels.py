"""The pixel loader: the stock image processor's pixels to the bit, whatever the file."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    ViTImageProcessorPil,
)

from hfvlm.images import ImageError, open_image
from hfvlm.pixels import PixelLoader, PixelSteps, cpu_threads


SIZES = [(37, 53), (53, 37), (224, 224), (300, 31), (8, 9), (1, 1), (201, 200)]

KNOWN = {
    "clip": CLIPImageProcessorPil(),
    "clip-30": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 30, "width": 31}),
    "clip-wider-crop": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 33, "width": 30}),
    "clip-crop-only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 40, "width": 39}),
    "clip-squashed": CLIPImageProcessorPil(size={"height": 33, "width": 20}, do_center_crop=False),
    "blip": BlipImageProcessorPil(size={"height": 48, "width": 40}),
    "vit": ViTImageProcessorPil(size={"height": 31, "width": 32}),
    "bytes": ViTImageProcessorPil(size={"height": 31, "width": 32}, do_rescale=False, do_normalize=False),
    "unscaled": ViTImageProcessorPil(size={"height": 31, "width": 32}, do_rescale=False),
    "one-mean": ViTImageProcessorPil(size={"height": 31, "width": 32}, image_mean=0.3, image_std=0.2),
}
UNKNOWN = {
    "own-resize": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "own-rescale": EfficientNetImageProcessorPil(size={"height": 30, "width": 30}),
    "longest-edge": CLIPImageProcessorPil(size={"shortest_edge": 20, "longest_edge": 40}),
    "padded": ViTImageProcessorPil(
        size={"height": 20, "width": 20}, do_pad=True, pad_size={"height": 24, "width": 24}
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of odd sizes, of every mode, rotated by EXIF, and with transparency."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    images = {}
    for width, height in SIZES:
        images[f"{width}x{height}.jpg"] = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    base = images["37x53.jpg"]
    for mode, suffix in [("L", "jpg"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png"), ("LA", "png")]:
        images[f"{mode}.{suffix}"] = base.convert(mode)
    images["RGBA.png"].putalpha(Image.linear_gradient("L").resize(base.size))
    images["deep.png"] = Image.fromarray(rng.integers(0, 65536, (40, 30), dtype=np.uint16))
    for name, image in images.items():
        image.save(folder / name)
    exif = Image.Exif()
    for orientation in (3, 6, 8):
        exif[0x0112] = orientation
        base.save(folder / f"turned{orientation}.jpg", exif=exif)
    base.convert("P").save(folder / "transparent.png", transparency=3)
    return sorted(folder.iterdir())


def stock(image_processor, path) -> torch.Tensor:
    return image_processor(images=[open_image(path)], return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_same_pixels_as_the_stock_processor(name, files):
    image_processor = {**KNOWN, **UNKNOWN}[name]
    load = PixelLoader(image_processor, threads=3)
    for path in files:
        [pixels] = load([path])["pixel_values"]
        expected = stock(image_processor, path)
        assert pixels.dtype == expected.dtype
        assert torch.equal(pixels, expected), path.name


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_only_known_steps_are_computed_here(name):
    assert PixelSteps.cover({**KNOWN, **UNKNOWN}[name]) == (name in KNOWN)


def test_a_subclass_with_steps_of_its_own_does_them_itself(files):
    class Inverted(CLIPImageProcessorPil):
        def normalize(self, image, mean, std, **kwargs):
            return 1 - image

    image_processor = Inverted(size={"shortest_edge": 32}, crop_size={"height": 30, "width": 31})
    assert not PixelSteps.cover(image_processor)
    [pixels] = PixelLoader(image_processor)([files[0]])["pixel_values"]
    assert torch.equal(pixels, stock(image_processor, files[0]))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_come_in_order(files, batch_size):
    image_processor = KNOWN["clip-30"]
    batches = list(PixelLoader(image_processor, threads=4).stream(iter(files), batch_size))
    assert [position for positions, _ in batches for position in positions] == list(range(len(files)))
    assert all(len(positions) <= batch_size for positions, _ in batches)
    pixels = torch.cat([pixels for _, pixels in batches])
    assert torch.equal(pixels, torch.stack([stock(image_processor, path) for path in files]))


@pytest.mark.parametrize("name", ["clip-30", "own-resize"])
def test_broken_images_are_reported_and_left_out(files, tmp_path, name):
    (tmp_path / "broken.jpg").write_text("no image")
    sources = [tmp_path / "gone.jpg", files[0], tmp_path / "broken.jpg", files[1], tmp_path / "gone.jpg"]
    image_processor, errors = {**KNOWN, **UNKNOWN}[name], {}
    load = PixelLoader(image_processor)
    batches = list(load.stream(sources, 2, on_error=errors.__setitem__))
    assert [positions for positions, _ in batches] == [[1], [3]]
    assert all(torch.equal(pixels[0], stock(image_processor, sources[p])) for [p], pixels in batches)
    assert sorted(errors) == [0, 2, 4]
    assert "broken.jpg" in str(errors[2])
    with pytest.raises(ImageError, match="gone.jpg: no such file"):
        load(sources)


def test_collates_rows_of_a_dataset(files):
    image_processor = KNOWN["vit"]
    rows = [{"image": Image.open(path), "label": 0} for path in files[:3]]
    [batch] = DataLoader(rows, batch_size=3, collate_fn=PixelLoader(image_processor))
    assert torch.equal(batch["pixel_values"], torch.stack([stock(image_processor, path) for path in files[:3]]))
    workers = DataLoader(files[:3], batch_size=3, num_workers=1, collate_fn=PixelLoader(image_processor))
    assert torch.equal(next(iter(workers))["pixel_values"], batch["pixel_values"])


def test_a_caller_that_stops_early_stops_the_threads(files):
    stream = PixelLoader(KNOWN["vit"], threads=2).stream((path for path in files * 1000), 1)
    next(stream)
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda load, files: load([]), ValueError, "images is empty"),
        (lambda load, files: load([{"picture": files[0]}]), ValueError, "needs an 'image', this one has picture"),
        (lambda load, files: load([3]), ImageError, "int is not an image"),
        (lambda load, files: list(load.stream(files, 0)), ValueError, "batch_size must be at least 1, got 0"),
        (lambda load, files: PixelLoader(KNOWN["vit"], threads=0), ValueError, "threads must be at least 1"),
        (
            lambda load, files: PixelLoader(ViTImageProcessorPil(do_resize=False))(files),
            ValueError,
            "different sizes",
        ),
    ],
)
def test_bad_input(files, call, error, message):
    with pytest.raises(error, match=message):
        call(PixelLoader(KNOWN["vit"]), files)


def test_threads_by_default_are_the_cores():
    assert PixelLoader(KNOWN["vit"]).threads == cpu_threads() >= 1
