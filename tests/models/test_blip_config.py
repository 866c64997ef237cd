"""BLIP's configuration: its variants, its defaults, and what survives being saved."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from hfvlm.encoders.configuration import BertTowerConfig, EfficientNetTowerConfig, VitTowerConfig
from hfvlm.models.blip.configuration_blip import VARIANTS, BlipConfig


# hidden size, layers, heads of the image tower
PUBLISHED = {"base": (768, 12, 12), "large": (1024, 24, 16)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants(name):
    config = BlipConfig.variant(name)
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == PUBLISHED[name]
    assert vision.intermediate_size == 4 * vision.hidden_size
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 12, 30524)
    assert text.encoder_hidden_size == vision.hidden_size
    assert text.is_decoder and text.type_vocab_size == 0
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (30522, 102, 0)
    assert config.label_smoothing == 0.1


def test_the_plain_config_is_the_base():
    assert BlipConfig().to_dict() == BlipConfig.variant("base").to_dict()


def test_overrides_reach_into_the_sub_configs_and_leave_the_rest():
    config = BlipConfig.variant("large", vision_config={"image_size": 480}, label_smoothing=0.0)
    assert (config.vision_config.image_size, config.vision_config.hidden_size) == (480, 1024)
    assert config.label_smoothing == 0.0
    assert "image_size" not in VARIANTS["large"]["vision_config"]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_config_comes_back_equal(name, tmp_path):
    config = BlipConfig.variant(name, vision_config={"image_size": 64})
    config.save_pretrained(tmp_path)
    loaded = BlipConfig.from_pretrained(tmp_path)
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert type(loaded.vision_config) is VitTowerConfig and type(loaded.text_config) is BertTowerConfig


def test_another_vision_tower_is_chosen_by_its_model_type(tmp_path):
    config = BlipConfig(vision_config={"model_type": "hfvlm_efficientnet_tower", "lite": True})
    assert type(config.vision_config) is EfficientNetTowerConfig
    assert config.text_config.encoder_hidden_size == 1280
    config.save_pretrained(tmp_path)
    assert type(BlipConfig.from_pretrained(tmp_path).vision_config) is EfficientNetTowerConfig


def test_ready_sub_configs_are_taken_as_they_are():
    vision = VitTowerConfig(hidden_size=96, num_attention_heads=3)
    text = BertTowerConfig(hidden_size=48, num_attention_heads=4, encoder_hidden_size=96, is_decoder=True)
    config = BlipConfig(vision_config=vision, text_config=text)
    assert config.vision_config is vision and config.text_config is text


def test_a_variant_with_another_vision_tower_has_nothing_of_the_vit():
    config = BlipConfig.variant("tiny", vision_config={"model_type": "hfvlm_efficientnet_tower", "lite": True})
    assert config.vision_config.to_dict() == EfficientNetTowerConfig(lite=True).to_dict()
    assert config.text_config.hidden_size == VARIANTS["tiny"]["text_config"]["hidden_size"]


def test_a_variant_takes_ready_sub_configs():
    vision = VitTowerConfig(hidden_size=96, num_attention_heads=3)
    text = BertTowerConfig(hidden_size=48, num_attention_heads=4, encoder_hidden_size=96, is_decoder=True)
    config = BlipConfig.variant("tiny", vision_config=vision, text_config=text)
    assert config.vision_config is vision and config.text_config is text


@pytest.mark.parametrize(
    ("field", "tower"),
    [
        ("vision_config", BertTowerConfig(encoder_hidden_size=768)),
        ("text_config", VitTowerConfig()),
        ("text_config", EfficientNetTowerConfig()),
    ],
)
def test_a_tower_in_the_wrong_place_is_refused(field, tower):
    for given in (tower, {"model_type": tower.model_type}):
        with pytest.raises(ValueError, match=f"{field}.model_type is '{tower.model_type}'; known towers: "):
            BlipConfig(**{field: given})


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_has_a_range(smoothing):
    with pytest.raises((ValueError, StrictDataclassError), match=r"label_smoothing must be in \[0, 1\)"):
        BlipConfig(label_smoothing=smoothing)
