"""CLIP's heads: sizes, scale and bias, ready towers, precision, and what they refuse."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config, tiny_model
from torch.nn.functional import normalize

from hfvlm import ClipConfig, ClipForImageClassification, ClipModel, ClipTextModel, ClipVisionModel
from hfvlm.encoders.bert import BertTower
from hfvlm.encoders.configuration import BertTowerConfig, ClipTextTowerConfig, ResNetTowerConfig, VitTowerConfig
from hfvlm.encoders.vit import VitTower
from hfvlm.losses.pairs import exchange
from hfvlm.models.clip.configuration_clip import VARIANTS


#: parameters in millions, as the paper's models have them
PUBLISHED = {
    "vit_b_32": 151.3,
    "vit_b_16": 149.6,
    "vit_l_14": 427.6,
    "vit_l_14_336": 427.9,
    "rn50": 102.0,
    "rn101": 119.7,
    "rn50x4": 178.3,
    "rn50x16": 291.0,
    "rn50x64": 623.3,
}


@pytest.fixture
def model() -> ClipModel:
    return tiny_model("hfvlm_clip", "AutoModel")


def batch(images: int = 3, texts: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (texts, 8), generator=generator)
    ids[:, -1] = 63
    return {"input_ids": ids, "pixel_values": torch.randn(images, 3, 32, 32, generator=generator)}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "tiny"])
def test_published_sizes(name):
    with torch.device("meta"):
        model = ClipModel(ClipConfig.variant(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)


def test_a_vision_dict_is_completed_to_clips_form():
    vit = ClipConfig(vision_config={"hidden_size": 64, "num_attention_heads": 1}).vision_config
    assert (vit.hidden_act, vit.patch_bias, vit.pre_norm, vit.final_norm) == ("quick_gelu", False, True, "pooled")
    assert ClipConfig(vision_config={"hidden_act": "gelu"}).vision_config.hidden_act == "gelu"
    config = ClipConfig.variant("rn50")
    assert config.vision_config.modified and config.vision_config.pooling == "attention" and not config.project_images
    assert type(ClipConfig(vision_config=VitTowerConfig()).vision_config) is VitTowerConfig  # a ready one as it is
    again = ClipConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict() and type(again.vision_config) is ResNetTowerConfig


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"objective": "hinge"}, "objective must be one of softmax, sigmoid"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"loss_chunk_size": 0}, "loss_chunk_size must be at least 1"),
        ({"project_images": False}, r"projection_dim \(32\) must be the image tower's 40 numbers"),
        ({"max_logit_scale": 0.5}, "max_logit_scale must be above 1"),
        ({"max_logit_scale": "none"}, "max_logit_scale must be a number, None or \"auto\"; got 'none'"),
        ({"logit_scale_init_value": "log"}, "logit_scale_init_value must be a number or \"auto\"; got 'log'"),
        ({"logit_bias_init_value": "none"}, "logit_bias_init_value must be a number, None or \"auto\"; got 'none'"),
        ({"projection_dim": 0}, "projection_dim must be at least 1, got 0"),
        ({"objective": "sigmoid", "label_smoothing": 0.1}, "label_smoothing is of the softmax objective"),
        ({"objective": "sigmoid", "local_loss": True}, "local_loss is of the softmax objective"),
        ({"vision_config": {"image_size": 30}}, r"image_size \(30\) must be a multiple of patch_size \(8\)"),
    ],
)
def test_impossible_configurations_are_named(fields, named):
    with pytest.raises(StrictDataclassError, match=named):
        ClipConfig.variant("tiny", **fields)


def test_unknown_variants_are_named():
    with pytest.raises(ValueError, match="unknown ClipConfig variant 'vit_h'; choose from vit_b_32, "):
        ClipConfig.variant("vit_h")


def test_the_scale_is_held_in_training_alone():
    model = tiny_model("hfvlm_clip", "AutoModel")
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), abs=1e-3)
    for value, held in ((9.0, 100.0), (-1.0, 1.0), (2.0, math.exp(2.0))):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        assert model.eval().scale_and_bias()[0].item() == pytest.approx(math.exp(value), rel=1e-5)
        model.train()(**batch())
        assert model.logit_scale.exp().item() == pytest.approx(held, rel=1e-5)
    free = tiny_model("hfvlm_clip", "AutoModel", max_logit_scale=None)
    with torch.no_grad():
        free.logit_scale.fill_(9.0)
    free.train()(**batch())
    assert free.logit_scale.item() == 9.0


def test_a_frozen_scale_beyond_the_limit_stays(model):
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.freeze("vision")
    assert model.train()(**batch()).loss.isfinite()
    assert model.logit_scale.item() == 9.0


def test_the_sigmoid_objective_has_no_limit_of_its_own(tmp_path):
    assert ClipConfig().max_logit_scale == 100.0
    assert ClipConfig(objective="sigmoid").max_logit_scale is None
    for limit in (None, 50.0, 100.0):
        for objective in ("softmax", "sigmoid"):
            ClipConfig(objective=objective, max_logit_scale=limit).save_pretrained(tmp_path)
            assert ClipConfig.from_pretrained(tmp_path).max_logit_scale == limit


def test_the_sigmoid_objective_starts_as_siglip(tmp_path):
    fresh = tiny_model("hfvlm_clip", "AutoModel", objective="sigmoid")
    assert fresh.logit_scale.item() == pytest.approx(math.log(10)) and fresh.logit_bias.item() == -10.0
    assert ClipModel(ClipConfig.variant("tiny")).logit_bias is None
    for scale, bias in ((2.0, None), (2.6592, -3.0)):  # what is said wins
        fields = {"logit_scale_init_value": scale, "logit_bias_init_value": bias}
        ClipConfig(objective="sigmoid", **fields).save_pretrained(tmp_path)
        config = ClipConfig.from_pretrained(tmp_path)
        assert (config.logit_scale_init_value, config.logit_bias_init_value) == (scale, bias)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"objective": "siglip"}, "objective must be one of softmax, sigmoid"),
        ({"text_config": {"pooling": "middle"}}, "pooling must be one of"),
    ],
)
def test_fields_changed_after_the_config_was_made_are_checked(model, tmp_path, fields, named):
    model.save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match=named):
        ClipModel.from_pretrained(tmp_path, **fields)
    config = ClipConfig.variant("tiny")
    for field, value in fields.items():
        if isinstance(value, dict):
            config.text_config.pooling = value["pooling"]
        else:
            setattr(config, field, value)
    with pytest.raises(StrictDataclassError, match=named):
        ClipModel(config)


def test_a_bias_is_added_to_every_similarity():
    model = tiny_model("hfvlm_clip", "AutoModel", objective="sigmoid", logit_bias_init_value=-10.0)
    outputs = model(**batch(), return_loss=True)
    cosines = outputs.image_embeds @ outputs.text_embeds.t()
    torch.testing.assert_close(outputs.logits_per_image, cosines * model.logit_scale.exp() - 10.0)
    signs = 2 * torch.eye(3) - 1
    expected = -torch.nn.functional.logsigmoid(signs * outputs.logits_per_image).sum() / 3
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert model.logit_bias.grad is not None and outputs.loss_itc is outputs.loss


def test_the_loss_is_asked_for_or_comes_with_training(model):
    assert model(**batch()).loss is None and model(**batch(), return_loss=True).loss is not None
    model.train()
    assert model(**batch()).loss is not None
    outputs = model(**batch(3, 5), return_loss=False)
    assert outputs.loss is None and outputs.logits_per_image.shape == (3, 5)


@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_processes_meet_in_training_alone(objective, monkeypatch):
    """Evaluation is often the first process's alone, which would wait for the others."""
    model, met = tiny_model("hfvlm_clip", "AutoModel", objective=objective), []

    def exchanged(images, texts, ids, gather, *args, **kwargs):
        met.append(gather)
        return exchange(images, texts, ids, gather, *args, **kwargs)

    monkeypatch.setattr("hfvlm.losses.contrastive.exchange", exchanged)
    model(**batch(), return_loss=True)
    model.train()(**batch())
    assert met == [False, True]


def test_photos_with_several_texts_are_no_negatives_of_themselves(model):
    inputs = batch(4, 4)  # the first two are views of one photo
    plain = model(**inputs, return_loss=True).loss
    named = model(**inputs, return_loss=True, image_ids=torch.tensor([7, 7, 1, 2])).loss
    unnamed = model(**inputs, return_loss=True, image_ids=torch.tensor([-100, 5, 1, 2])).loss
    assert not torch.isclose(plain, named) and torch.isclose(plain, unnamed)


def test_chunks_leave_the_matrix_out(model):
    expected = model(**batch(), return_loss=True)
    model.config.loss_chunk_size = 2
    outputs = model(**batch(), return_loss=True)
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert outputs.logits_per_image is None and outputs.image_embeds is not None
    assert model(**batch()).logits_per_image is not None


def test_a_single_pair_has_nothing_to_contrast_with(model):
    with pytest.warns(UserWarning, match="a contrastive loss of a single pair is 0"):
        loss = model(**batch(1, 1), return_loss=True).loss
    assert loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_in_full(model, dtype):
    expected = model(**batch(2, 4))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    outputs = model.to(dtype)(**batch(2, 4))
    assert outputs.image_embeds.dtype == dtype and outputs.logits_per_image.dtype == torch.float32
    cosines = outputs.logits_per_image / model.logit_scale.exp().float()
    full = expected.image_embeds @ expected.text_embeds.t()
    torch.testing.assert_close(cosines, full, atol=0.05, rtol=0.05)
    model.train()(**batch()).loss.backward()
    assert model.logit_scale.grad.isfinite()


def test_autocast_scores_in_full(model):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        outputs = model(**batch(2, 4))
    assert outputs.logits_per_image.dtype == torch.float32


def test_ready_towers_keep_their_weights():
    torch.manual_seed(0)
    config = tiny_config("hfvlm_clip")
    vision = VitTower(config.vision_config)
    text = BertTower(BertTowerConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64))
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    config.text_config = text.config
    model = ClipModel(config, vision, text).eval()
    assert model.vision_model is vision and model.text_model is text
    assert all(torch.equal(value, before[name]) for name, value in model.vision_model.state_dict().items())
    ids = batch()["input_ids"]
    first = model.text_projection(text.eval()(ids).last_hidden_state[:, 0])
    torch.testing.assert_close(model(input_ids=ids).text_embeds, normalize(first, dim=-1))


def test_a_ready_tower_that_the_config_does_not_describe_is_refused():
    """Saved and loaded, it would be another model."""
    config = tiny_config("hfvlm_clip")
    heads = VitTower(VitTowerConfig(**{**config.vision_config.to_dict(), "num_attention_heads": 8}))
    with pytest.raises(ValueError, match=r"vision_config=tower.config.*differs in num_attention_heads \(8, not 4\)$"):
        ClipVisionModel(config, vision_model=heads)
    bert = BertTower(BertTowerConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64))
    with pytest.raises(ValueError, match="the ready BertTower is not .*model_type"):
        ClipTextModel(config, text_model=bert)
    config.vision_config = heads.config
    assert ClipVisionModel(config, vision_model=heads).vision_model is heads


def test_a_locked_image_tower_trains_the_texts_alone(model):
    model.freeze("text")
    model.train()(**batch()).loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"text_model", "text_projection", "logit_scale"}
    assert not model.vision_model.training and model.text_model.training


def test_each_tower_reads_the_folder_of_the_whole(model, tmp_path):
    model.save_pretrained(tmp_path)
    inputs, expected = batch(), model(**batch())
    for head, name, kind in ((ClipVisionModel, "pixel_values", "image"), (ClipTextModel, "input_ids", "text")):
        tower, info = head.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        torch.testing.assert_close(tower.eval()(**{name: inputs[name]})[f"{kind}_embeds"], expected[f"{kind}_embeds"])
    classifier = ClipForImageClassification.from_pretrained(tmp_path, num_labels=5).eval()
    tokens = model.get_image_features(inputs["pixel_values"]).last_hidden_state[:, 1:].mean(dim=1)
    assert torch.equal(classifier.vision_model.cls_token, model.vision_model.cls_token)
    logits = classifier(inputs["pixel_values"]).logits
    torch.testing.assert_close(logits, classifier.classifier(tokens))


@pytest.mark.parametrize(
    "change, error, named",
    [
        (lambda x: {}, ValueError, "pass pixel_values, input_ids, or both"),
        (lambda x: {"input_ids": x["input_ids"], "return_loss": True}, ValueError, "pass both pixel_values and input"),
        (
            lambda x: {**x, "pixel_values": x["pixel_values"][:2], "return_loss": True},
            ValueError,
            "2 images and 3 t",
        ),
        (lambda x: {**x, "pixel_values": x["pixel_values"][..., :30]}, ValueError, "this model takes 32x32"),
        (
            lambda x: {**x, "pixel_values": x["pixel_values"][..., :30], "interpolate_pos_encoding": True},
            ValueError,
            "cannot be cut into patches of 8x8",
        ),
        (lambda x: {**x, "pixel_values": x["pixel_values"] * math.nan}, ValueError, "NaN or infinity"),
        (lambda x: {**x, "input_ids": x["input_ids"].repeat(1, 6)}, ValueError, "has 48 tokens, this model reads 40"),
        (lambda x: {**x, "atention_mask": x["input_ids"]}, TypeError, "did you mean 'attention_mask'"),
        (lambda x: {**x, "position_ids": x["input_ids"]}, TypeError, "does not read 'position_ids'"),
        (lambda x: {**x, "inputs_embeds": torch.zeros(3, 8, 48)}, TypeError, "does not read 'inputs_embeds'"),
        (lambda x: {**x, "bool_masked_pos": x["input_ids"]}, TypeError, "does not read 'bool_masked_pos'"),
        (
            lambda x: {**x, "image_ids": torch.zeros(2).long(), "return_loss": True},
            ValueError,
            r"image_ids must be \[3\]",
        ),
    ],
)
def test_bad_input_is_named(model, change, error, named):
    with pytest.raises(error, match=named):
        model(**change(batch()))


def test_a_fresh_model_has_the_released_codes_scale():
    torch.manual_seed(0)
    wide = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = ClipConfig(vision_config=wide, text_config={**wide, "vocab_size": 50}, projection_dim=256)
    model = ClipModel(config)
    for projection in (model.visual_projection, model.text_projection):
        assert projection.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert model.logit_scale.item() == pytest.approx(2.6592) and model.logit_bias is None
    assert type(config.text_config) is ClipTextTowerConfig
