"""Patches against a matrix product over cut-out squares, and position tables that are resized."""

import pytest
import torch

from hfvlm.nn.embedding import PatchEmbedding, check_pixels, resize_positions


def test_patches_are_squares_row_by_row():
    embed = PatchEmbedding(patch_size=4, channels=3, dim=5)
    pixels = torch.randn(2, 3, 8, 12)
    patches = embed(pixels)
    assert patches.shape == (2, 6, 5)
    weight = embed.proj.weight.flatten(1)
    for i in range(6):
        top, left = 4 * (i // 3), 4 * (i % 3)
        square = pixels[:, :, top : top + 4, left : left + 4].flatten(1)
        torch.testing.assert_close(patches[:, i], square @ weight.T + embed.proj.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_the_convolutions(bias):
    """Values and gradients, and where a patch does not fit, or somebody listens to the convolution."""
    embed = PatchEmbedding(patch_size=4, channels=3, dim=5, bias=bias)
    pixels = torch.randn(2, 3, 8, 12, requires_grad=True)
    expected = embed.proj(pixels).flatten(2).transpose(1, 2)
    inputs = (pixels, *embed.parameters())
    for size in (12, 14):
        wider = torch.nn.functional.pad(pixels, (0, size - 12))
        torch.testing.assert_close(embed(wider), expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((outputs * weights).sum(), inputs) for outputs in (embed(pixels), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    heard = []
    embed.proj.register_forward_hook(lambda *_: heard.append(1))
    torch.testing.assert_close(embed(pixels), expected)
    assert heard == [1]


def test_the_same_grid_gives_the_same_table():
    table = torch.randn(1, 17, 6)
    assert resize_positions(table, (4, 4)) is table


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("grid", [(8, 8), (2, 2), (3, 7)])
def test_positions_are_interpolated_as_a_picture_of_them(grid, prefix):
    table = torch.randn(1, prefix + 16, 6)
    resized = resize_positions(table, grid, prefix_tokens=prefix)
    assert resized.shape == (1, prefix + grid[0] * grid[1], 6)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])
    for channel in range(6):
        picture = table[:, prefix:, channel].view(1, 1, 4, 4)
        expected = torch.nn.functional.interpolate(picture, size=grid, mode="bicubic", align_corners=False)
        torch.testing.assert_close(resized[:, prefix:, channel], expected.flatten(1))


def test_a_constant_table_stays_constant():
    torch.testing.assert_close(resize_positions(torch.ones(1, 10, 2), (5, 6)), torch.ones(1, 31, 2))


def test_a_table_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="12 patches is not a square grid"):
        resize_positions(torch.randn(1, 13, 2), (4, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_pixels_of_any_float_pass(dtype):
    check_pixels(torch.zeros(1, 3, 8, 8, dtype=dtype), 3, 8)
    check_pixels(torch.zeros(1, 3, 5, 9, dtype=dtype), 3, None)


def test_a_layer_that_was_put_in_is_called():
    embed = PatchEmbedding(patch_size=4, channels=3, dim=5)
    doubled, pixels = embed.proj, torch.randn(2, 3, 8, 12)
    expected = 2 * embed(pixels)
    embed.proj = torch.nn.Sequential(doubled, torch.nn.Conv2d(5, 5, 1, bias=False))
    torch.nn.init.zeros_(embed.proj[1].weight)
    with torch.no_grad():
        embed.proj[1].weight[range(5), range(5)] = 2
        torch.testing.assert_close(embed(pixels), expected.detach())
