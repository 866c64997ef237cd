"""ViT's heads: what each returns, how they read each other's folders, and what they refuse."""

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoModelForImageClassification, AutoModelForMaskedImageModeling, ViTImageProcessorPil

import hfvlm
from hfvlm import VitConfig, VitForImageClassification, VitForMaskedImageModeling, VitModel, VitProcessor
from hfvlm.encoders.vit import VitTower
from hfvlm.models.vit.configuration_vit import VARIANTS, bit_stem


#: a backbone that costs nothing
STEM = {**bit_stem(1, 1), "hidden_sizes": [32, 64], "embedding_size": 32, "num_groups": 8}


def build(cls=VitModel, **fields):
    torch.manual_seed(0)
    return cls(VitConfig.variant("tiny", **fields)).eval()


def pixels(batch: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name):
    config = VitConfig.variant(name)
    tower = config.vision_config
    if name != "tiny":
        assert tower.image_size == 224 and tower.intermediate_size == 4 * tower.hidden_size
        assert str(tower.patch_size) == name.split("_")[-1]
    assert VitConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_b_16", 86.6), ("vit_l_16", 304.3), ("vit_h_14", 632.0), ("r50_vit_b_16", 98.7)]
)
def test_published_numbers_of_parameters(name, millions):
    with torch.device("meta"):
        model = VitForImageClassification(VitConfig.variant(name, num_labels=1000))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_variant_takes_the_towers_fields():
    config = VitConfig.variant("vit_b_16", vision_config={"image_size": 384}, num_labels=7)
    assert (config.vision_config.grid_size, config.vision_config.hidden_size, config.num_labels) == (24, 768, 7)
    assert config.hidden_size == 768 and config.colours == 512
    with pytest.raises(ValueError, match="unknown ViT variant 'vit_b_8'; choose from vit_ti_16"):
        VitConfig.variant("vit_b_8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": {"image_size": 33}}, r"image_size \(33\) must be a multiple of patch_size \(8\)"),
        ({"vision_config": {"patch_size": 8, "stem_config": bit_stem(1, 1, 1)}}, r"multiple of the stem's stride, 16"),
        ({"vision_config": {"stem_config": {"model_type": "bert"}}}, "is no backbone"),
        ({"vision_config": {"stem_config": {}}}, "stem_config.model_type is None; name a backbone"),
        ({"representation_size": 0}, "representation_size must be at least 1"),
        ({"mim_ratio": 0.0}, r"mim_ratio must be in \(0, 1\]"),
        ({"mim_mask_share": 0.8, "mim_swap_share": 0.3}, "must be shares of 1"),
        ({"mim_bits": 9}, "mim_bits must be between 1 and 8"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be one number, or one for each of the 3 channels"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        VitConfig.variant("tiny", **fields)


def test_features_with_and_without_the_layer_before_the_classifier():
    plain, outputs = build(), build()(pixels(), output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (2, 17, 40) and len(outputs.hidden_states) == 3
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])
    model = build(representation_size=24)
    assert model(pixels()).pooler_output.shape == (2, 24)
    model.vision_model.load_state_dict(plain.vision_model.state_dict())
    linear = model.pre_logits[0]
    torch.testing.assert_close(model(pixels()).pooler_output, torch.tanh(linear(plain(pixels()).pooler_output)))


def test_a_ready_tower_keeps_its_weights():
    tower = VitTower(VitConfig.variant("tiny").vision_config)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    model = VitForImageClassification(VitConfig.variant("tiny"), vision_model=tower)
    assert all(torch.equal(model.vision_model.state_dict()[name], value) for name, value in before.items())


def test_heads_read_each_others_folders(tmp_path):
    pretrained = build(VitForMaskedImageModeling)
    pretrained.save_pretrained(tmp_path / "masked")
    classifier, info = AutoModelForImageClassification.from_pretrained(
        tmp_path / "masked", num_labels=3, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    assert torch.equal(classifier.vision_model.cls_token, pretrained.vision_model.cls_token)
    classifier.save_pretrained(tmp_path / "classes")
    features, info = transformers.AutoModel.from_pretrained(tmp_path / "classes", output_loading_info=True)
    assert type(features) is VitModel and not any(info.values())
    assert type(AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "classes")) is VitForMaskedImageModeling


@pytest.mark.parametrize("tower", [{"stem_config": STEM}, {"position_embedding": "factorised"}], ids=["hybrid", "2-d"])
def test_every_tower_saves_and_loads(tower, tmp_path):
    model = build(VitForImageClassification, vision_config=tower)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(pixels()).logits, model(pixels()).logits)
    assert type(loaded.config.vision_config.stem_config) is type(model.config.vision_config.stem_config)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_classification_loss(smoothing):
    model = build(VitForImageClassification, num_labels=5, label_smoothing=smoothing)
    labels = torch.tensor([4, 1])
    outputs = model(pixels(), labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.loss_cls, expected)
    torch.testing.assert_close(model(pixels(), labels=labels, num_items_in_batch=8).loss, expected * 2 / 8)
    assert model(pixels()).loss is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5]), r"labels hold 5, this model has classes 0 to 4 \(num_labels\)"),
        (torch.tensor([0, -1]), "labels hold -1"),
        (torch.tensor([0, 1, 2]), r"labels must have shape \[2\] for single_label_classification, got \[3\]"),
        (torch.zeros(2, 4), r"labels must have shape \[2, 5\] for multi_label_classification, got \[2, 4\]"),
    ],
)
def test_labels_that_cannot_be(labels, message):
    with pytest.raises(ValueError, match=message):
        build(VitForImageClassification, num_labels=5)(pixels(), labels=labels)


def test_a_stage_that_trains_the_classifier_alone():
    model = build(VitForImageClassification)
    model.freeze("classifier")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize("cls", [VitModel, VitForImageClassification, VitForMaskedImageModeling])
def test_input_that_cannot_be_read(cls):
    model = build(cls)
    with pytest.raises(ValueError, match="pixel_values are 40x40, this model takes 32x32"):
        model(pixels(2, 40, 40))
    with pytest.raises(ValueError, match="cannot be cut into patches of 8x8"):
        model(pixels(2, 36, 40), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="NaN or infinity"):
        model(pixels() / 0.0)
    with pytest.raises(TypeError, match="unknown argument 'pixel_value', did you mean 'pixel_values'"):
        model(pixels(), pixel_value=pixels())
    with pytest.raises(TypeError, match="pixel_values must be a tensor, got NoneType"):
        model()
    assert model(pixels(1, 24, 40), interpolate_pos_encoding=True)[0].isfinite().all()


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_the_processor_squares_and_normalises():
    processor = VitProcessor(ViTImageProcessorPil())
    squared = np.asarray(picture().resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float32)
    expected = torch.from_numpy((squared / np.float32(255) - 0.5) / 0.5).permute(2, 0, 1)
    torch.testing.assert_close(processor(images=[picture(), picture(1)])["pixel_values"][0], expected)
    assert processor(images=picture(), size={"height": 32, "width": 48})["pixel_values"].shape == (1, 3, 32, 48)
    with pytest.raises(ValueError, match="pass images"):
        processor()
    with pytest.raises(TypeError, match="ViT reads no text"):
        processor(images=picture(), text="a dog")


def test_stock_pipelines_load_a_saved_folder(tmp_path):
    model = build(VitForImageClassification, id2label={0: "cat", 1: "dog", 2: "cow"})
    model.save_pretrained(tmp_path)
    processor = VitProcessor(ViTImageProcessorPil(size={"height": 32, "width": 32}))
    processor.save_pretrained(tmp_path)
    inputs = processor(images=picture())
    best = transformers.pipeline("image-classification", model=str(tmp_path))(picture(), top_k=1)[0]
    scores = model(**inputs).logits.detach().softmax(-1)[0]
    assert best["label"] == model.config.id2label[int(scores.argmax())]
    assert best["score"] == pytest.approx(float(scores.max()), abs=1e-6)
    features = transformers.pipeline("image-feature-extraction", model=str(tmp_path), pool=True)(picture())
    expected = hfvlm.VitModel.from_pretrained(tmp_path)(**inputs).pooler_output
    torch.testing.assert_close(torch.tensor(features), expected, atol=1e-5, rtol=1e-5)
