"""Every kind of image opens as the picture that a person sees; every broken one is refused by name."""

import base64
import io
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from hfvlm.images import IMAGE_SUFFIXES, ImageError, open_image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels, and holds hardly any."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))


@pytest.fixture
def server(photo):
    """A local web server; yields its address."""
    pages = {"/photo.png": encoded(photo), "/page.html": b"<html>", "/empty.png": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_every_source_gives_the_same_pixels(photo, tmp_path, server):
    data = encoded(photo)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    late = io.BytesIO(data)
    late.seek(0, io.SEEK_END)  # as it is left after image.save(buffer)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), late, file, photo, Image.open(path), uri]
        for source in [*sources, f"{server}/photo.png"]:
            image = open_image(source)
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(photo)), source


def test_given_image_is_left_alone(photo):
    grey = photo.convert("L")
    assert open_image(grey).mode == "RGB"
    assert grey.mode == "L"


def test_palette():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 30, 10])
    assert open_image(encoded(image)).getpixel((0, 0)) == (200, 30, 10)


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 30, 10])
    image.putpixel((1, 0), 1)
    opened = open_image(encoded(image, transparency=0))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 30, 10)]


def test_colour_key_transparency_is_laid_on_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (7, 7, 7))
    opened = open_image(encoded(image, transparency=(1, 2, 3)))
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (7, 7, 7)]


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_alpha_is_laid_on_white(mode):
    clear, solid = Image.new("RGBA", (2, 2), (0, 0, 0, 0)), Image.new("RGBA", (2, 2), (0, 0, 0, 255))
    for image, expected in ((clear, 255), (solid, 0)):
        for step in ("LA", "La") if mode == "La" else (mode,):
            image = image.convert(step)
        assert open_image(image).getpixel((0, 0)) == (expected,) * 3


def test_palette_with_alpha_is_laid_on_white():
    image = Image.new("PA", (2, 1), (1, 0))
    image.putpalette([9, 9, 9, 200, 30, 10])
    image.putpixel((1, 0), (1, 255))
    assert [open_image(image).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 30, 10)]


@pytest.mark.parametrize(("format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")])
def test_sixteen_bit_grey_is_scaled_not_clipped(format, mode):
    levels = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    image = Image.fromarray(levels.astype(">u2")) if mode == "I;16B" else Image.fromarray(levels)
    data = encoded(image, format)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert np.array_equal(np.asarray(open_image(data))[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], dtype=np.int32), [0, 100, 255]),
        (np.array([[-1000, 0, 1000]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0, 10**9, 2 * 10**9]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.4, 1.0]], dtype=np.float32), [0, 102, 255]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[-5.0, -5.0, -5.0]], dtype=np.float32), [0, 0, 0]),
    ],
)
def test_wide_integers_and_floats_are_scaled_by_range(levels, expected):
    opened = open_image(encoded(Image.fromarray(levels), "TIFF"))
    assert np.asarray(opened)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_levels_that_are_no_number_are_refused(tmp_path, value):
    Image.fromarray(np.array([[value, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "levels.tiff")
    with pytest.raises(ImageError, match=r"levels.tiff: holds NaN"):
        open_image(tmp_path / "levels.tiff")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_that_is_searched_for_is_read(photo, tmp_path, suffix):
    photo.save(tmp_path / f"photo{suffix}")
    assert open_image(tmp_path / f"photo{suffix}").size == photo.size


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA"])
def test_other_formats_are_refused_whatever_the_name(photo, tmp_path, monkeypatch, format):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(photo, format))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("a program was run"))
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="is not an image that can be read"):
            open_image(source)


def test_a_photo_of_several_pictures_is_still_a_jpeg(photo):
    data = encoded(photo, "MPO", save_all=True, append_images=[photo])
    assert Image.open(io.BytesIO(data)).format == "MPO"  # as some phones and stereo cameras write
    assert open_image(data).size == photo.size


@pytest.mark.parametrize(("mode", "format"), [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("YCbCr", "TIFF")])
def test_other_modes_are_converted(photo, mode, format):
    image = photo.convert(mode)
    opened = open_image(encoded(image, format))
    assert opened.mode == "RGB"
    difference = np.abs(np.asarray(opened, dtype=int) - np.asarray(image.convert("RGB"), dtype=int))
    assert difference.mean() < (40 if format == "JPEG" else 1)  # of noise, JPEG keeps little


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = Image.new("RGB", (32, 16), "blue")
    upright.paste("red", (0, 0, 16, 16))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for source in (encoded(stored, exif=exif), Image.open(io.BytesIO(encoded(stored, exif=exif)))):
        assert np.array_equal(np.asarray(open_image(source)), np.asarray(upright))


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "I;16", "F", "RGBA"])
def test_one_pixel(mode):
    assert open_image(Image.new(mode, (1, 1))).size == (1, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
def test_truncated(photo, tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    photo.resize((200, 200)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut"):
        open_image(path)
    if suffix == "jpg":
        with pytest.raises(ImageError, match="truncated"):
            open_image(Image.open(path))


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])  # PIL warns of the first, refuses the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, size):
    def decoded(self):
        raise AssertionError("the pixels were asked for")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with pytest.raises(ImageError, match="pixels"):
            open_image(source)


def test_raised_limit_is_respected(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        open_image(photo)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(photo).size == photo.size


def test_broken_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is not an image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    for name, reason in [
        ("empty.jpg", "0 bytes"),
        ("text.jpg", "not an image"),
        ("folder.jpg", "folder"),
        ("missing.jpg", "no such file"),
        ("text.jpg/inside.jpg", "cannot be read"),
        ("noise.png", ""),
    ]:
        for source in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ImageError, match=f"{name}.*{reason}"):
                open_image(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "0 bytes"),
        (b"GIF89a", "6 bytes"),
        (io.BytesIO(), "0 bytes"),
        (io.StringIO("text"), "binary"),
        (None, "NoneType is not an image"),
        (3, "int is not an image"),
        ("a\0b", "null"),
        ("x" * 5000, r"x{40}\.\.\..*cannot be read"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png,abc", "base64"),
        (Image.new("RGB", (0, 4)), "no pixels"),
    ],
)
def test_broken_objects(source, reason):
    with pytest.raises(ImageError, match=reason):
        open_image(source)


@pytest.mark.parametrize(
    ("page", "reason"), [("missing.png", "404"), ("page.html", "not an image"), ("empty.png", "0 bytes")]
)
def test_broken_urls(server, page, reason):
    with pytest.raises(ImageError, match=f"{page}.*{reason}"):
        open_image(f"{server}/{page}")


def test_server_that_is_not_there():
    with pytest.raises(ImageError, match="127.0.0.1:9/.*download"):
        open_image("http://127.0.0.1:9/photo.png", timeout=2)


def test_too_large_download(server, monkeypatch):
    monkeypatch.setattr("hfvlm.images.MAX_DOWNLOAD", 10)
    with pytest.raises(ImageError, match="larger"):
        open_image(f"{server}/photo.png")


def test_error_survives_a_worker_process():
    # DataLoader raises what a worker raised again, from its message alone
    assert isinstance(ImageError("photo.jpg: broken"), ValueError)
    assert str(ImageError("photo.jpg: broken")) == "photo.jpg: broken"
