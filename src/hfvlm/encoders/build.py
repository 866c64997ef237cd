"""From a tower's configuration to the tower."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.efficientnet import EfficientNetTower
from hfvlm.encoders.resnet import ResNetTower
from hfvlm.encoders.vit import VitTower


VISION_TOWERS = {tower.config_class.model_type: tower for tower in (VitTower, ResNetTower, EfficientNetTower)}


def vision_tower(config: PreTrainedConfig, ready: nn.Module | None = None) -> nn.Module:
    """The image tower of a configuration, with fresh weights, or the `ready` one with those that it has."""
    return VISION_TOWERS[config.model_type](config) if ready is None else keep_weights(ready, config)


def bert_tower(
    config: PreTrainedConfig, direction: str, ready: BertTower | None = None, pairing: str | None = None
) -> BertTower:
    """The BERT of a configuration, with fresh weights, or the `ready` one with those that it has.

    Args:
        direction, pairing: as `BertTower` has them.

    Raises:
        ValueError: a ready tower that reads in another direction.
    """
    if ready is None:
        return BertTower(config, direction, pairing)
    if getattr(ready, "pairing", pairing) != pairing:
        raise ValueError(f"the ready {type(ready).__name__} must be built with pairing={pairing!r} for this head")
    if getattr(ready, "direction", direction) != direction:
        raise ValueError(
            f"the ready {type(ready).__name__} is {ready.direction}, this head needs BertTower(config, {direction!r})"
        )
    return keep_weights(ready, config)


def keep_weights(tower: nn.Module, config: PreTrainedConfig) -> nn.Module:
    """Marks a ready tower as initialised: `post_init()` draws new weights for everything that is not.

    Args:
        config: what the model is saved with, and its tower built from when it is loaded.

    Raises:
        ValueError: a tower of this house that is not built so; names the fields in which it differs.
    """
    ready = getattr(tower, "config", None)
    if getattr(ready, "model_type", "").startswith("hfvlm_"):
        own, expected = _geometry(ready), _geometry(config)
        wrong = [name for name in {**own, **expected} if own.get(name) != expected.get(name)]
        if wrong:
            differing = ", ".join(f"{name} ({own.get(name)}, not {expected.get(name)})" for name in wrong)
            raise ValueError(
                f"the ready {type(tower).__name__} is not the tower of the model's config, so it could not be loaded "
                f"again; give that config the tower's own (vision_config=tower.config, or text_config). It differs in "
                f"{differing}"
            )
    for part in (*tower.modules(), *tower.parameters(), *tower.buffers()):
        part._is_hf_initialized = True
    return tower


def _geometry(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a tower's config that are its own, not every config's."""
    fields = config.to_dict()
    return {
        name: fields[name]
        for name in fields
        if name == "model_type" or (name not in PreTrainedConfig.__dataclass_fields__ and not name.startswith("_"))
    }
