"""Where a text is in an image: the maps are attention times gradient, and drawing them shows where they are large."""

import numpy as np
import pytest
import torch
from contract.heads import pad, tiny_batch
from PIL import Image
from tiny import tiny_model

from hfvlm.grounding import draw_map, grid_of, ground


AUTO = "AutoModelForImageTextRetrieval"


@pytest.fixture(scope="module", params=["albef", "blip"])
def model(request):
    return tiny_model(request.param, AUTO)


def expected_maps(model, batch, layer: int) -> torch.Tensor:
    """The maps `[rows, length, 16]` of one text an image, by numerical derivatives: each head's weights are moved a
    little, patch by patch."""
    tower = model.text_model
    attention = tower.layers[layer].cross_attention
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        tokens = model.vision_model(batch["pixel_values"]).last_hidden_state
        weights = []
        hook = attention.register_forward_hook(lambda module, args, out: weights.append(out[1]))
        ids, mask = batch["input_ids"], batch["attention_mask"]
        model.fuse(tokens, ids, mask)
        hook.remove()
        values = attention.keys_and_values(tokens, None)[1]  # [rows, heads, tokens, head_dim]
        rows, heads, length, count = weights[0].shape
        found = torch.zeros(rows, length, count)
        step = 1e-5
        for head in range(heads):
            for token in range(length):
                for patch in range(count):
                    moved = torch.zeros(rows, length, heads, values.shape[-1], dtype=values.dtype)
                    moved[:, token, head] = step * values[:, head, patch]
                    logits = []
                    for sign in (1, -1):
                        hook = attention.proj.register_forward_pre_hook(
                            lambda module, args, change=sign * moved: (args[0] + change.flatten(2),)
                        )
                        fused = model.fuse(tokens, ids, mask).last_hidden_state  # of every token, as match has it
                        logits.append(model.itm_head(fused[:, 0])[:, 1])
                        hook.remove()
                    slope = (logits[0] - logits[1]) / (2 * step)
                    found[:, token, patch] += weights[0][:, head, token, patch] * slope.clamp(min=0) / heads
    return found[..., 1:]


def test_maps_are_attention_times_the_gradient_of_the_match(model):
    model = type(model)(model.config).double().eval()
    batch = tiny_batch(model, images=2, length=4)
    batch["pixel_values"] = batch["pixel_values"].double()
    layer = len(model.text_model.layers) - 1
    maps = ground(model, **batch, layer=layer)
    assert maps.tokens.shape == (2, 4, 4, 4)
    assert (maps.tokens >= 0).all() and maps.tokens.max() > 0
    torch.testing.assert_close(maps.tokens.flatten(2), expected_maps(model, batch, layer), rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(maps.text, maps.tokens.mean(1))


def test_the_model_is_as_it_was_and_judges_as_always(model):
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    attention = model.text_model.config._attn_implementation
    batch = tiny_batch(model, images=2)
    try:
        with torch.no_grad():
            maps = ground(model, **batch)
        assert model.training and model.text_model.config._attn_implementation == attention
        assert not any(parameter.grad is not None for parameter in model.parameters())
        assert not any(layer.cross_attention._forward_hooks for layer in model.text_model.layers if layer.fuses)
    finally:
        model.requires_grad_(True)
        model.eval()
    torch.testing.assert_close(maps.itm_logits, model(**batch, return_loss=False).itm_logits)


def test_several_texts_an_image_padding_and_any_pairing(model):
    batch = tiny_batch(model, images=2, texts=2)
    maps = ground(model, **batch)
    alone = ground(model, batch["pixel_values"][1:], batch["input_ids"][2:3])
    torch.testing.assert_close(alone.tokens, maps.tokens[2:3], rtol=1e-3, atol=1e-8)
    index = torch.tensor([1, 0, 0, 1])
    crossed = ground(model, **batch, memory_index=index)
    torch.testing.assert_close(crossed.text[[1, 3]], maps.text[[1, 3]], rtol=1e-3, atol=1e-8)
    assert not torch.allclose(crossed.text[0], maps.text[0], rtol=1e-2)
    padded = ground(model, **pad(batch, 3, "right"))
    torch.testing.assert_close(padded.text, maps.text, rtol=1e-3, atol=1e-8)
    assert not padded.tokens[:, -3:].any()


def test_layers(model):
    batch = tiny_batch(model, images=1)
    first, count = model.config.text_config.fusion_layer, len(model.text_model.layers)
    maps = [ground(model, **batch, layer=layer).text for layer in range(first, count)]
    assert torch.equal(ground(model, **batch).text, maps[2 * count // 3 - first])
    assert not torch.allclose(*maps, rtol=1e-2)
    for layer in (first - 1, count):
        with pytest.raises(ValueError, match=f"layer must be between {first} and {count - 1}, .* got {layer}"):
            ground(model, **batch, layer=layer)


def test_grids():
    assert grid_of(tiny_model("albef", AUTO).config.vision_config, (32, 48), 25) == (4, 6)
    assert grid_of(object(), (64, 96), 6) == (2, 3)
    with pytest.raises(ValueError, match="7 tokens are no grid over an image of 64 x 96"):
        grid_of(object(), (64, 96), 7)


def test_bad_input_is_named(model):
    batch = tiny_batch(model, images=2)
    with pytest.raises(TypeError, match="AlbefModel does not judge pairs"):
        ground(tiny_model("albef", "AutoModel"), **batch)
    three = tiny_batch(model, images=3)
    with pytest.raises(ValueError, match="3 texts cannot be shared out evenly among 2 images: pass memory_index"):
        ground(model, batch["pixel_values"], three["input_ids"])
    with pytest.raises(ValueError, match=r"memory_index must be \[2\], one a text, got \[3\]"):
        ground(model, **batch, memory_index=torch.tensor([0, 1, 1]))


def test_the_picture_is_red_where_the_map_is_large():
    photo = Image.new("L", (60, 40), 128)
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    drawn = draw_map(photo, heat)
    assert (drawn.size, drawn.mode) == (photo.size, "RGB")
    pixels = np.asarray(drawn).astype(int)
    red, _, blue = pixels[2, 57]
    assert red > blue
    assert (pixels[30:, :30] == [64, 64, 128]).all()
    assert np.array_equal(np.asarray(draw_map(photo, torch.tensor(heat), opacity=0)), np.asarray(photo.convert("RGB")))
    assert np.asarray(draw_map(photo, heat * 0)).std(axis=(0, 1)).max() == 0
    for given, options, message in (
        (heat[None], {}, r"a map must be \[grid, grid\], got \[1, 4, 4\]"),
        (heat * np.nan, {}, "not finite"),
        (heat, {"opacity": 2}, "opacity must be between 0 and 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_map(photo, given, **options)
