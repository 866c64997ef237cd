"""MoCo's views: what each version may change of an image, that torch's seed decides, and the evaluation transform."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfvlm import MocoProcessor
from hfvlm.images import ImageError
from hfvlm.models.moco import views
from hfvlm.models.moco.processing_moco import IMAGENET, image_processor_for
from hfvlm.models.moco.views import RECIPES, ViewRecipe, colour_jitter, random_crop, random_view, shift_hue


PLAIN = ViewRecipe(jitter_p=0.0, gray_p=0.0, blur_p=0.0)


@pytest.fixture
def photo() -> Image.Image:
    """Colours that change from left to right and from top to bottom."""
    rows, columns = np.mgrid[0:60, 0:90]
    return Image.fromarray(np.stack([rows * 4, columns * 2, 200 - rows - columns], axis=-1).astype(np.uint8))


def processor(augmentation: str = "v2") -> MocoProcessor:
    return MocoProcessor(image_processor_for(28), augmentation=augmentation)


@pytest.mark.parametrize("augmentation", RECIPES)
def test_two_views_that_torchs_seed_decides(photo, augmentation):
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(processor(augmentation)(images=[photo, photo], views=True))
    one, again, other = drawn
    assert list(one) == ["pixel_values", "pixel_values_key"]
    assert all(value.shape == (2, 3, 28, 28) for value in one.values())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["pixel_values"], one["pixel_values_key"])
    assert not torch.equal(one["pixel_values"][0], one["pixel_values"][1])


def test_without_views_it_is_the_released_codes_evaluation(photo):
    """The shorter side to 8/7 of the size, bilinear, the middle, ImageNet's mean and deviation."""
    resized = photo.resize((48, 32), Image.Resampling.BILINEAR).crop((10, 2, 38, 30))
    pixels = np.asarray(resized) / 255.0
    expected = (pixels - IMAGENET["image_mean"]) / IMAGENET["image_std"]
    made = processor()(images=photo)["pixel_values"]
    np.testing.assert_allclose(made[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_views_are_normalised_the_same_way(monkeypatch, photo):
    monkeypatch.setitem(RECIPES, "v2", (PLAIN, PLAIN))
    flat = Image.new("RGB", photo.size, (10, 120, 250))
    expected = (np.array([10, 120, 250]) / 255.0 - IMAGENET["image_mean"]) / IMAGENET["image_std"]
    for view in processor()(images=flat, views=True).values():
        np.testing.assert_allclose(view.mean((0, 2, 3)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(90, 60), (400, 10), (3, 300)])
@pytest.mark.parametrize("smallest", [0.08, 0.2, 0.5])
def test_crops_lie_inside_the_image_and_keep_their_share(size, smallest, monkeypatch):
    torch.manual_seed(0)
    image, seen = Image.new("RGB", size), []
    resize = Image.Image.resize

    def spy(self, target, filter, box):
        seen.append(box)
        return resize(self, target, filter, box)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for _ in range(50):
        assert random_crop(image, (20, 16), smallest).size == (20, 16)
    for left, top, right, bottom in seen:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
        if size == (90, 60):
            assert (right - left) * (bottom - top) >= 0.95 * smallest * size[0] * size[1]
            assert 0.7 < (right - left) / (bottom - top) < 1.55
    assert len(set(seen)) > 1 or size != (90, 60)


def test_hue_turns_round_the_circle():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert shift_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)
    r, g, b = shift_hue(red, 1 / 3).getpixel((0, 0))
    assert g > 250 and r < 10 and b < 10
    r, g, b = shift_hue(red, -1 / 3).getpixel((0, 0))
    assert b > 250 and r < 10 and g < 10
    assert shift_hue(Image.new("RGB", (1, 1), (90, 90, 90)), 0.3).getpixel((0, 0)) == (90, 90, 90)


def test_jitter_of_strength_nothing_changes_nothing(photo):
    torch.manual_seed(0)
    changed = np.asarray(colour_jitter(photo, (0.0, 0.0, 0.0, 0.0))).astype(int)
    assert np.abs(changed - np.asarray(photo)).max() <= 8  # hue and back
    assert np.abs(np.asarray(colour_jitter(photo, (0.4, 0.4, 0.4, 0.1))).astype(int) - changed).max() > 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gray_p", lambda view: view.convert("L").convert("RGB")),
        ("solarize_p", lambda view: Image.eval(view, lambda level: 255 - level if level >= 128 else level)),
    ],
)
def test_steps_that_are_certain(photo, monkeypatch, name, expected):
    recipes = [PLAIN, ViewRecipe(**{**vars(PLAIN), name: 1.0})]
    monkeypatch.setattr(views, "chance", lambda probability: probability == 1.0)  # and no mirror
    made = []
    for recipe in recipes:
        torch.manual_seed(3)
        made.append(random_view(photo, (24, 24), recipe))
    assert list(made[1].getdata()) == list(expected(made[0]).getdata())


def test_what_each_version_may_do():
    v1, v2, (query, key) = RECIPES["v1"], RECIPES["v2"], RECIPES["v3"]
    assert v1[0] is v1[1] and v1[0].gray_first and v1[0].jitter_p == 1.0 and not v1[0].blur_p
    assert v2[0] == v2[1] and (v2[0].jitter_p, v2[0].blur_p, v2[0].smallest_crop) == (0.8, 0.5, 0.2)
    assert (query.blur_p, query.solarize_p, key.blur_p, key.solarize_p) == (1.0, 0.0, 0.1, 0.2)


def test_bad_input(photo, tmp_path):
    with pytest.raises(ValueError, match="augmentation must be one of v1, v2, v3; got 'v4'"):
        processor("v4")
    with pytest.raises(ValueError, match="pass images"):
        processor()()
    with pytest.raises(ValueError, match="images is empty"):
        processor()(images=[], views=True)
    with pytest.raises(TypeError, match="MoCo reads no text"):
        processor()(images=photo, text="a dog")
    with pytest.raises(ImageError, match="no such file"):
        processor()(images=[tmp_path / "none.jpg"], views=True)
