"""The contact sheet: a place for each image, upright, with names that fit."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from hfvlm.data.sheet import CELL, MARGIN, NAME, draw_sheet, drawable, find_font, shorten, write_sheet


@pytest.fixture
def results(tmp_path):
    """Seven red images, wide, tall or turned by EXIF, one of them gone."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = []
    for number in range(6):
        path = tmp_path / f"{number} {'long ' * 20}.jpg"
        Image.new("RGB", (80, 20) if number % 2 else (20, 80), "red").save(path, exif=exif if number == 5 else b"")
        paths.append(str(path))
    return [(0.3 - 0.1 * number, path) for number, path in enumerate([*paths, str(tmp_path / "gone.jpg")])]


def red(sheet: Image.Image) -> np.ndarray:
    """Where the sheet is red, `[h, w]`."""
    pixels = np.asarray(sheet).astype(int)
    return (pixels[..., 0] > 200) & (pixels[..., 1] < 60)


@pytest.mark.parametrize(("count", "columns", "wide"), [(1, 4, 1), (3, 4, 3), (7, 4, 4), (7, 2, 2), (7, 1, 1)])
def test_grid(results, count, columns, wide):
    sheet = draw_sheet(results[:count], "a query", columns)
    assert sheet.width == 2 * MARGIN + wide * CELL + (wide - 1) * 18
    pixels = np.asarray(sheet)
    for edge in (pixels[:MARGIN], pixels[-MARGIN:], pixels[:, :MARGIN], pixels[:, -MARGIN:]):
        assert (edge == 255).all()  # even margins


def test_images_fill_their_cells_upright(results):
    for number in (0, 1, 5):  # tall, wide, and wide but turned
        ys, xs = np.nonzero(red(draw_sheet([results[number]], "q")))
        height, width = np.ptp(ys) + 1, np.ptp(xs) + 1
        expected = (CELL, CELL // 4) if number in (0, 5) else (CELL // 4, CELL)
        assert abs(height - expected[0]) <= 4
        assert abs(width - expected[1]) <= 4


def test_an_image_that_is_gone_leaves_its_place(results):
    assert draw_sheet(results[-1:], "q").size == draw_sheet(results[:1], "q").size
    assert not red(draw_sheet(results[-1:], "q")).any()


@pytest.mark.parametrize("width", [5, 40, 100, 232])
def test_names_are_shortened_in_the_middle(width):
    font, name = ImageFont.load_default(NAME), "IMG_2019_a_day_on_the_beach_with_everyone_0001.jpg"
    short = shorten(name, font, width)
    assert font.getlength(short) <= width or short == "..."
    head, _, tail = short.partition("...")
    assert name.startswith(head)
    assert name.endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    assert shorten("a.jpg", font, 100) == "a.jpg"


def test_letters_that_the_font_lacks_are_replaced(monkeypatch):
    plain = ImageFont.load_default(NAME)
    assert drawable("Zo\u00eb's caf\u00e9 e\u0301t\u00e9 (1)_A-b.jpg", plain) == "Zoe's cafe ete (1)_A-b.jpg"
    assert drawable("\u4e2d.jpg", plain) == "?.jpg"

    def gone(name, size):
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", gone)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: plain)
    assert find_font(NAME) is plain


def test_paths_are_shown_as_they_are_in_the_folder(results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("hfvlm.data.sheet.shorten", lambda text, font, width: shown.append(text) or "")
    path = str(tmp_path / "more" / "gone.jpg")
    draw_sheet([(0.5, path)], "q", folder=tmp_path)
    draw_sheet([(0.5, path)], "q")
    assert shown == ["q", "more/gone.jpg", "q", "gone.jpg"]


def test_written_at_once(results, tmp_path):
    path = tmp_path / "out" / "sheet.png"
    path.parent.mkdir()
    write_sheet(path, results, "a very long title " * 20)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]
    assert Image.open(path).format == "PNG"
    with pytest.raises(ValueError, match="results is empty"):
        write_sheet(path, [], "q")
