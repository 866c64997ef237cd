"""EfficientNet weights as efficientnet_pytorch names them -> `EfficientNetTower`: B0 to B7, and Lite."""

from collections.abc import Mapping

import torch

from hfvlm.conversion.rules import Drop, Fresh, Rename, apply
from hfvlm.encoders.efficientnet import EfficientNetTower


_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_se_reduce": "squeeze_excite.reduce",
    "_se_expand": "squeeze_excite.expand",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
RULES = (
    Rename("_conv_stem.{p}", "stem.conv.{p}"),
    Rename("_bn0.{p}", "stem.norm.{p}"),
    *(Rename(f"_blocks.{{i}}.{theirs}.{{p}}", f"blocks.{{i}}.{ours}.{{p}}") for theirs, ours in _BLOCK.items()),
    Rename("_conv_head.{p}", "head.conv.{p}"),
    Rename("_bn1.{p}", "head.norm.{p}"),
    Drop("_fc.{p}", "the ImageNet classifier: a tower gives features"),
    Fresh("proj.{p}", "the projection to another width is learned with the model that reads the tower"),
)


def load_efficientnet(tower: EfficientNetTower, weights: Mapping[str, torch.Tensor]) -> None:
    """Copies weights into a tower of the same size; a projection after the last map stays as it is.

    Args:
        weights: a state dict with efficientnet_pytorch's keys.

    Raises:
        KeyMismatch: lists the keys that are missing, unknown or wrongly shaped.
    """
    own = tower.state_dict()
    own.update(apply(RULES, weights, {key: value.shape for key, value in own.items()}).tensors)
    tower.load_state_dict(own)
