"""The vision transformer tower: its tokens, and other image sizes."""

import pytest
import torch

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
