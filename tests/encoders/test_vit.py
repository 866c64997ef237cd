"""The vision transformer tower: its tokens, and other image sizes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfvlm.encoders.configuration import VitTowerConfig, tower_config
from hfvlm.encoders.vit import VitTower


def tower(**kwargs) -> VitTower:
    torch.manual_seed(0)
    fields = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    return VitTower(VitTowerConfig(**{**fields, **kwargs})).eval()


def test_a_class_token_and_a_token_a_patch():
    model = tower()
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.last_hidden_state.shape == (2, 17, 24)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    hidden = model(torch.randn(2, 3, 32, 32), output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in hidden] == [(2, 17, 24)] * 3


def test_blocks_are_pre_norm_with_a_final_norm():
    model = tower()
    pixels = torch.randn(1, 3, 32, 32)
    hidden = torch.cat([model.cls_token, model.patch_embed(pixels)], dim=1) + model.position_embedding
    for block in model.blocks:
        hidden = hidden + block.attn(block.norm1(hidden))[0]
        hidden = hidden + block.mlp(block.norm2(hidden))
    torch.testing.assert_close(model(pixels).last_hidden_state, model.norm(hidden))


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (32, 32)])
def test_any_size_that_the_patches_divide(size):
    tokens = tower()(torch.randn(1, 3, *size), interpolate_pos_encoding=True).last_hidden_state
    assert tokens.shape == (1, 1 + size[0] // 8 * (size[1] // 8), 24)


@pytest.mark.parametrize("size", [(39, 47), (32, 39), (4, 4), (0, 8)])
def test_a_size_that_the_patches_do_not_divide_is_refused(size):
    with pytest.raises(ValueError, match=f"are {size[0]}x{size[1]}, .* multiples of the patch size 8"):
        tower()(torch.randn(1, 3, *size), interpolate_pos_encoding=True)


def test_another_number_of_channels():
    assert tower(num_channels=1)(torch.randn(1, 1, 32, 32)).last_hidden_state.shape == (1, 17, 24)
    with pytest.raises(ValueError, match=r"\[batch, 1, height, width\]"):
        tower(num_channels=1)(torch.randn(1, 3, 32, 32))


def test_fresh_weights_are_small_and_not_zero():
    model = tower()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            continue
        assert 0.001 < parameter.std() < 0.3, name


def test_the_sub_config_is_found_by_its_model_type():
    given = tower_config({"model_type": "hfvlm_vit_tower", "image_size": 64}, VitTowerConfig, "vision_config")
    assert type(given) is VitTowerConfig and given.grid_size == 4
    assert tower_config(given, VitTowerConfig, "vision_config") is given
    assert type(tower_config(None, VitTowerConfig, "vision_config")) is VitTowerConfig
    with pytest.raises(ValueError, match="vision_config.model_type is 'swin'; known towers: .*hfvlm_vit_tower"):
        tower_config({"model_type": "swin"}, VitTowerConfig, "vision_config")
    with pytest.raises(TypeError, match="vision_config must be a dict or a config, got str"):
        tower_config("vit", VitTowerConfig, "vision_config")


def test_the_pooled_vector_and_the_norm():
    pixels = torch.randn(2, 3, 32, 32)
    mean = tower(pooling="mean")(pixels)
    torch.testing.assert_close(mean.pooler_output, mean.last_hidden_state[:, 1:].mean(1))
    alone = tower(pooling="mean", class_token=False)(pixels)
    assert alone.last_hidden_state.shape == (2, 16, 24)
    model = tower(final_norm="pooled", pooling="mean")
    outputs = model(pixels)
    torch.testing.assert_close(outputs.pooler_output, model.norm(outputs.last_hidden_state[:, 1:].mean(1)))
    none = tower(final_norm="none")
    assert none.norm is None and none(pixels).last_hidden_state.isfinite().all()
    with pytest.raises((ValueError, StrictDataclassError), match="pooling 'cls' needs class_token=True"):
        tower(class_token=False)


def test_factorised_positions_are_a_row_and_a_column():
    model = tower(position_embedding="factorised")
    table = model.positions((4, 4))
    rows, columns = model.row_embedding[0], model.column_embedding[0]
    torch.testing.assert_close(table[0, 1 + 2 * 4 + 3], torch.cat([rows[2], columns[3]]))
    torch.testing.assert_close(table[:, :1], model.position_embedding)
    assert model.positions((6, 3)).shape == (1, 19, 24)
    assert model(torch.randn(1, 3, 48, 24), interpolate_pos_encoding=True).pooler_output.isfinite().all()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_a_table_is_interpolated_as_named(mode):
    model = tower(interpolation=mode)
    square = model.position_embedding[:, 1:].view(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size=(6, 5), mode=mode).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.positions((6, 5))[:, 1:], expected)


@pytest.mark.parametrize("position", ["learned", "factorised", "sincos"])
def test_a_row_of_patches_has_its_own_place(position):
    model = tower(position_embedding=position)
    places = model.positions((4, 4))[0, 1:]
    assert len({tuple(place) for place in places.detach().round(decimals=6).tolist()}) == 16


def test_patches_can_be_given():
    model, pixels = tower(), torch.randn(2, 3, 48, 32)
    embeds, grid = model.embed(pixels, interpolate_pos_encoding=True)
    assert grid == (6, 4) and embeds.shape == (2, 24, 24)
    expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(model(patch_embeds=embeds, patch_grid=grid).last_hidden_state, expected)
    with pytest.raises(ValueError, match="patch_embeds has 24 patches, 4 rows of 4 are expected"):
        model(patch_embeds=embeds)


#: backbones that cost nothing; their last map has a stride of 8
BIT = {
    "model_type": "bit",
    "layer_type": "bottleneck",
    "depths": [1, 1],
    "hidden_sizes": [32, 64],
    "embedding_size": 32,
    "num_groups": 8,
    "global_padding": "same",
    "embedding_dynamic_padding": True,
    "out_features": ["stage2"],
}
RESNET = {
    "model_type": "resnet",
    "depths": [1, 1],
    "hidden_sizes": [32, 64],
    "embedding_size": 32,
    "layer_type": "basic",
    "out_features": ["stage2"],
}


@pytest.mark.parametrize("stem", [BIT, RESNET], ids=["bit", "resnet"])
@pytest.mark.parametrize("patch", [8, 16])
def test_a_hybrid_cuts_a_feature_map_into_patches(stem, patch, tmp_path):
    model = tower(stem_config=stem, patch_size=patch)
    pixels = torch.randn(2, 3, 32, 32)
    assert model.config.stem_stride == 8
    features = model.patch_embed.backbone(pixels).feature_maps[-1]
    assert features.shape == (2, 64, 4, 4)
    assert model(pixels).last_hidden_state.shape == (2, 1 + (32 // patch) ** 2, 24)
    assert model(torch.randn(1, 3, 32, 64), interpolate_pos_encoding=True).last_hidden_state.isfinite().all()
    model.save_pretrained(tmp_path)
    loaded, info = VitTower.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert loaded.to(torch.bfloat16)(pixels).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "stride"),
    [
        ({}, 8),
        ({"out_features": ["stem"]}, 4),
        ({"out_features": ["stage1"]}, 4),
        ({"depths": [1, 1, 1, 1], "hidden_sizes": [32, 64, 96, 128], "out_features": ["stage4"]}, 32),
        ({"depths": [1, 1, 1], "hidden_sizes": [32, 64, 96], "out_features": ["stage3"], "output_stride": 8}, 8),
    ],
)
def test_the_stride_of_a_stem_is_what_its_map_shows(fields, stride):
    model = tower(stem_config={**BIT, **fields}, image_size=64, patch_size=32)
    assert model.config.stem_stride == stride
    features = model.patch_embed.backbone(torch.randn(1, 3, 64, 64)).feature_maps[-1]
    assert features.shape[-1] == 64 // stride


def test_the_first_stage_of_a_resnet_may_halve_too():
    model = tower(stem_config={**RESNET, "downsample_in_first_stage": True}, patch_size=16)
    assert model.config.stem_stride == 16
    assert model(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, 5, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem_config": BIT, "patch_size": 4}, r"patch_size \(4\) must be a multiple of the stem's stride, 8 pixels"),
        ({"stem_config": {"model_type": "unheard-of"}}, "stem_config.model_type is 'unheard-of'; name a backbone"),
        ({"position_embedding": "sincos", "hidden_size": 30}, "hidden_size .30. must be a multiple of 4"),
        ({"interpolation": "nearest"}, "interpolation must be one of bicubic, bilinear; got 'nearest'"),
    ],
)
def test_towers_that_cannot_be(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tower(**fields)
