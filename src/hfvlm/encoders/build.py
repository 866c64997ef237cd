"""From a tower's configuration to the tower."""

from torch import nn
from transformers import PreTrainedConfig

from hfvlm.encoders.efficientnet import EfficientNetTower
from hfvlm.encoders.resnet import ResNetTower
from hfvlm.encoders.vit import VitTower


VISION_TOWERS = {tower.config_class.model_type: tower for tower in (VitTower, ResNetTower, EfficientNetTower)}


def vision_tower(config: PreTrainedConfig, ready: nn.Module | None = None) -> nn.Module:
    """The image tower of a configuration, with fresh weights, or the `ready` one with those that it has."""
    return VISION_TOWERS[config.model_type](config) if ready is None else keep_weights(ready)


def keep_weights(tower: nn.Module) -> nn.Module:
    """Marks a ready tower as initialised: `post_init()` draws new weights for everything that is not."""
    for part in (*tower.modules(), *tower.parameters(), *tower.buffers()):
        part._is_hf_initialized = True
    return tower
