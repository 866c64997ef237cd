"""Towers whose weights are on disk until they are needed: every layer is called, never read from outside."""

import pytest
import torch
from tiny import randomise

from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.clip_text import ClipTextTower
from hfvlm.encoders.configuration import (
    BertTowerConfig,
    ClipTextTowerConfig,
    EfficientNetTowerConfig,
    ResNetTowerConfig,
    VitTowerConfig,
)
from hfvlm.encoders.efficientnet import EfficientNetTower
from hfvlm.encoders.resnet import ResNetTower
from hfvlm.encoders.vit import VitTower


WIDTHS = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 3}
TOWERS = {
    "vit": (VitTower, VitTowerConfig(**WIDTHS, image_size=32, patch_size=8)),
    "resnet": (
        ResNetTower,
        ResNetTowerConfig(
            depths=(1, 1, 1, 1), width=4, modified=True, pooling="attention", num_attention_heads=4, image_size=32
        ),
    ),
    "efficientnet": (
        EfficientNetTower,
        EfficientNetTowerConfig(stages=[[1, 3, 2, 4, 8]], head_channels=16, hidden_size=24, image_size=32),
    ),
    "bert": (BertTower, BertTowerConfig(**WIDTHS, vocab_size=50, max_position_embeddings=16)),
    "clip_text": (ClipTextTower, ClipTextTowerConfig(**WIDTHS, vocab_size=50, max_position_embeddings=16)),
}


@pytest.mark.parametrize("name", TOWERS)
def test_weights_on_disk_give_the_same_outputs(name, tmp_path):
    torch.manual_seed(0)
    kind, config = TOWERS[name]
    tower = kind(config).eval()
    randomise(tower)
    tower.save_pretrained(tmp_path / "model")
    parts = dict.fromkeys((child for child, _ in tower.named_children()), "disk")
    parts |= dict.fromkeys((own for own, _ in tower.named_parameters(recurse=False)), "cpu")
    offloaded = kind.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offload", offload_buffers=True
    )
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    if kind.main_input_name == "pixel_values":
        inputs = torch.randn(8, 3, 32, 32)
    else:
        inputs = torch.randint(1, 50, (8, 7))
    with torch.no_grad():
        expected, outputs = tower(inputs), offloaded(inputs)
    torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
