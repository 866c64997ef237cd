"""BLIP's towers: ready ones keep their weights, and what forward does not take is refused."""

import pytest
import torch
from tiny import tiny_config
from torch import nn

from hfvlm.models.blip.modeling_blip import BlipForConditionalGeneration, BlipModel


@pytest.mark.parametrize("head", [BlipModel, BlipForConditionalGeneration])
def test_a_given_tower_of_plain_modules_keeps_its_weights(head):
    vision = nn.Sequential(nn.Linear(4, 40), nn.LayerNorm(40), nn.BatchNorm1d(40), nn.Embedding(3, 40))
    with torch.no_grad():
        for tensor in (*vision.parameters(), vision[2].running_mean, vision[2].running_var):
            tensor.uniform_(1, 2)
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    model = head(tiny_config("hfvlm_blip"), vision_model=vision)
    assert model.vision_model is vision
    for name, value in vision.state_dict().items():
        assert torch.equal(value, before[name]), name
