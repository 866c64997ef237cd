"""ALIGN's configuration: the published geometry, what follows from what, and what is refused."""

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from hfvlm import AlignConfig, AlignModel
from hfvlm.models.align.configuration_align import VARIANTS


# channels of the last map, blocks
SIZES = {
    "b0": (320, 16),
    "b1": (320, 23),
    "b2": (352, 23),
    "b3": (384, 26),
    "b4": (448, 32),
    "b5": (512, 39),
    "b6": (576, 45),
    "b7": (640, 55),
    "base": (640, 55),
}


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - {"tiny"}))
def test_sizes(name):
    channels, blocks = SIZES[name]
    config = AlignConfig.variant(name)
    assert config.projection_dim == config.vision_config.hidden_size == channels
    assert len(config.vision_config.plan[1]) == blocks
    assert not config.project_images and config.text_projection_bias and config.label_smoothing == 0.1
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (768, 12)


def test_base_has_the_published_parameters():
    with torch.device("meta"):
        ours = AlignModel(AlignConfig())
        theirs = transformers.AlignModel(transformers.AlignConfig())
    pooler = sum(p.numel() for p in theirs.text_model.pooler.parameters())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - pooler
    config = ours.config
    assert config.to_dict() == {**AlignConfig.variant("base").to_dict(), "dtype": config.to_dict()["dtype"]}
    assert config.vision_config.image_size == 289


def test_the_joint_space_follows_the_image_tower():
    assert AlignConfig(vision_config={"width_coefficient": 1.1}).projection_dim == 352
    assert AlignConfig.variant("b0", vision_config={"image_size": 224}).vision_config.hidden_size == 320
    projected = AlignConfig(vision_config={"model_type": "hfvlm_vit_tower"})
    assert projected.project_images and projected.projection_dim == 640
    asked = AlignConfig(vision_config={"width_coefficient": 1.0}, project_images=True, projection_dim=128)
    assert (asked.vision_config.hidden_size, asked.projection_dim) == (320, 128)


def test_it_survives_being_saved(tmp_path):
    config = AlignConfig.variant("tiny", vision_config={"symmetric_blocks": [1]}, min_temperature=0.02)
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is AlignConfig
    plan = config.vision_config.plan
    assert loaded.vision_config.plan == plan and loaded.vision_config.symmetric_blocks == [1]
    assert loaded.min_temperature == 0.02 and loaded.projection_dim == config.projection_dim
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projection_dim": 512}, "projection_dim .512. must be the image tower's 640 numbers, or set project_images"),
        ({"temperature_init_value": 0.0}, "temperature_init_value divides the similarities"),
        ({"min_temperature": -1.0}, "min_temperature divides the similarities"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"objective": "sigmoid", "label_smoothing": 0.1}, "label_smoothing is of the softmax objective"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"vision_config": {"padding": "valid"}}, "padding must be one of same, fixed"),
        ({"vision_config": {"model_type": "hfvlm_bert_tower"}}, "known towers"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        AlignConfig(**fields)


def test_the_sigmoid_objective_smooths_nothing(tmp_path):
    config = AlignConfig(objective="sigmoid")
    assert config.label_smoothing == 0.0
    config.save_pretrained(tmp_path)
    assert AlignConfig.from_pretrained(tmp_path).label_smoothing == 0.0


def test_an_unknown_variant_names_the_others():
    with pytest.raises(ValueError, match="unknown AlignConfig variant 'b8'; choose from base, b0"):
        AlignConfig.variant("b8")
