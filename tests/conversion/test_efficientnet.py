"""EfficientNet weights under efficientnet_pytorch's names."""

import pytest
import torch

from hfvlm.conversion.efficientnet import RULES, load_efficientnet
from hfvlm.conversion.rules import KeyMismatch, apply, invert
from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.encoders.efficientnet import EfficientNetTower


def tower(seed: int, **kwargs) -> EfficientNetTower:
    torch.manual_seed(seed)
    small = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "head_channels": 64, "hidden_size": 64}
    return EfficientNetTower(EfficientNetTowerConfig(**{**small, **kwargs}))


def weights_of(model: EfficientNetTower) -> dict[str, torch.Tensor]:
    """As efficientnet_pytorch would have saved them, classifier and all."""
    classifier = {"_fc.weight": torch.zeros(10, 64), "_fc.bias": torch.zeros(10)}
    return {**apply(invert(RULES), model.state_dict()).tensors, **classifier}


@pytest.mark.parametrize("lite", [False, True])
def test_weights_land_in_their_places(lite):
    kwargs = {"lite": lite, "hidden_size": 48}
    trained, fresh = tower(0, **kwargs), tower(1, **kwargs)
    weights = weights_of(trained)
    block = "_blocks.1._se_reduce.weight"
    assert ("_conv_stem.weight" in weights) and (block in weights) != lite
    assert "_bn1.running_var" in weights and "_blocks.1._expand_conv.weight" in weights
    projection = fresh.proj.weight.clone()
    load_efficientnet(fresh, weights)
    assert torch.equal(fresh.proj.weight, projection), "a projection to another width starts fresh"
    fresh.proj.load_state_dict(trained.proj.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    options = {"interpolate_pos_encoding": True}
    expected = trained.eval()(pixels, **options).last_hidden_state
    assert torch.equal(fresh.eval()(pixels, **options).last_hidden_state, expected)


def test_another_size_is_refused_key_by_key():
    with pytest.raises(KeyMismatch) as caught:
        load_efficientnet(tower(0, lite=True), weights_of(tower(1)))
    assert "_blocks.0._se_reduce.weight" in caught.value.extra
