"""Configurations that no tower can be built of are refused, by the field's name."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfvlm.encoders.bert import BertLmHead, BertTower
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


TRANSFORMER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT = (*TRANSFORMER, "vocab_size", "max_position_embeddings")
POSITIVE = {
    VitTowerConfig: (*TRANSFORMER, "image_size", "patch_size", "num_channels"),
    ResNetTowerConfig: ("width", "num_attention_heads", "output_dim", "image_size", "num_channels"),
    EfficientNetTowerConfig: (
        "width_coefficient",
        "depth_coefficient",
        "channel_divisor",
        "squeeze_ratio",
        "image_size",
        "num_channels",
        "head_channels",
        "hidden_size",
    ),
    BertTowerConfig: (*TEXT, "encoder_hidden_size"),
    ClipTextTowerConfig: TEXT,
}
SHARES = {
    VitTowerConfig: ("attention_dropout", "hidden_dropout_prob"),
    EfficientNetTowerConfig: ("drop_connect_rate",),
    BertTowerConfig: ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    ClipTextTowerConfig: ("attention_dropout",),
}


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in POSITIVE for field in POSITIVE[kind]])
def test_sizes_are_positive(kind, field):
    for value in (0, -1):
        if "coefficient" in field or "ratio" in field:
            value = float(value)
        with pytest.raises(StrictDataclassError, match=f"{field} must be positive, got {value}"):
            kind(**{field: value})


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in SHARES for field in SHARES[kind]])
def test_rates_are_shares(kind, field):
    for value in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(StrictDataclassError, match=rf"{field} must be in \[0, 1\), got {value}"):
            kind(**{field: value})
    kind(**{field: 0.0})


def test_there_may_be_no_token_types_but_not_fewer():
    BertTowerConfig(type_vocab_size=0)
    with pytest.raises(StrictDataclassError, match="type_vocab_size must not be negative"):
        BertTowerConfig(type_vocab_size=-1)


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (VitTower, VitTowerConfig),
        (EfficientNetTower, EfficientNetTowerConfig),
        (BertTower, BertTowerConfig),
        (BertLmHead, BertTowerConfig),
        (ClipTextTower, ClipTextTowerConfig),
    ],
)
def test_an_unknown_activation_is_named_and_so_are_the_known(build, config):
    with torch.device("meta"), pytest.raises(ValueError, match="hidden_act must be one of .*gelu.*; got 'foo'"):
        build(config(hidden_act="foo"))


@pytest.mark.parametrize("size", [(16, 16), (31, 64), (64, 8)])
def test_images_too_small_to_average_are_refused(size):
    fields = {"pooling": "attention", "num_attention_heads": 4, "output_dim": 24, "image_size": 64}
    model = ResNetTower(ResNetTowerConfig(depths=(1, 1, 1, 1), width=4, modified=True, **fields)).eval()
    with pytest.raises(ValueError, match=f"are {size[0]}x{size[1]}, this tower reads 32x32 or more"):
        model(torch.randn(1, 3, *size), interpolate_pos_encoding=True)
