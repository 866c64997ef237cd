"""MoCo's converter: each form of the releases, read back to the same model, and what it says of others."""

import json

import pytest
import torch
from torch import nn

from hfvlm import MocoConfig, MocoForImageClassification, MocoForPreTraining
from hfvlm.conversion.convert_moco import convert, convert_vision, main, to_release_keys
from hfvlm.conversion.rules import KeyMismatch
from hfvlm.encoders.resnet import ResNetTower
from hfvlm.encoders.vit import VitTower


VIT = {
    "model_type": "hfvlm_vit_tower",
    "hidden_size": 384,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "image_size": 32,
    "patch_size": 16,
}
V3 = {"objective": "symmetric", "projection_hidden_size": 24, "momentum": 0.99}
FORMS = {
    "v1": {"projection_layers": 1, "temperature": 0.07, "momentum": 0.999},
    "v2": {"projection_hidden_size": 128, "momentum": 0.999},
    "v3_resnet": {"temperature": 1.0, "predictor_norm": False, **V3},
    "v3_vit": {"vision_config": VIT, "projection_layers": 3, "temperature": 0.2, **V3},
}


def pretraining(form: str) -> MocoForPreTraining:
    torch.manual_seed(0)
    model = MocoForPreTraining(MocoConfig.variant("tiny", **FORMS[form]))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def release(model: MocoForPreTraining) -> dict:
    """What the training scripts save."""
    tensors = to_release_keys(model, model.state_dict())
    wrapped = {f"module.{key}": value.contiguous() for key, value in tensors.items()}
    return {"epoch": 1, "arch": "encoder", "state_dict": wrapped, "optimizer": {"state": {}}}


def probe(model: MocoForPreTraining, classes: int = 5) -> dict[str, torch.Tensor]:
    """A linear probe of its encoder, in the original's keys."""
    encoder = "encoder_q." if model.config.objective == "queue" else "base_encoder."
    head = "head" if isinstance(model.vision_model, VitTower) else "fc"
    tensors = to_release_keys(model, model.state_dict())
    found = {key.removeprefix(encoder): value for key, value in tensors.items() if key.startswith(encoder)}
    found = {key: value for key, value in found.items() if not key.startswith(f"{head}.")}
    return {**found, f"{head}.weight": torch.randn(classes, model.config.feature_size), f"{head}.bias": torch.ones(5)}


def same(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("form", FORMS)
def test_everything_is_read_off_a_pretraining_checkpoint(form, tmp_path):
    model = pretraining(form)
    torch.save(release(model), tmp_path / "checkpoint.pth.tar")
    fields = {"vision_config": {"image_size": 32}}  # a ResNet's weights do not tell
    converted = convert(tmp_path / "checkpoint.pth.tar", config=fields, output=tmp_path / "out", verify=True)
    assert same(converted, model) and not converted.training
    ours, theirs = converted.config.to_dict(), model.config.to_dict()
    told = ["objective", "projection_dim", "projection_layers", "temperature", "momentum", "predictor_norm"]
    told += ["queue_size"] if model.queue is not None else []
    assert [ours[name] for name in told] == [theirs[name] for name in told]
    assert same(MocoForPreTraining.from_pretrained(tmp_path / "out"), model)
    settings = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert settings["augmentation"] == form[:2]


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_alone(form, tmp_path):
    model = pretraining(form)
    told = {"vision_config": {"image_size": 32}}
    tower = convert_vision(release(model)["state_dict"], config=told, output=tmp_path / "tower", verify=True)
    assert same(tower, model.vision_model)
    kind = VitTower if form == "v3_vit" else ResNetTower
    assert same(kind.from_pretrained(tmp_path / "tower"), tower)
    assert same(convert_vision(probe(model), config=told), tower)


@pytest.mark.parametrize("form", ["v2", "v3_vit"])
def test_a_linear_probe_is_a_classifier(form, tmp_path):
    model = pretraining(form)
    tensors = probe(model)
    converted = convert(tensors, config={"vision_config": {"image_size": 32}}, output=tmp_path / "out", verify=True)
    assert type(converted) is MocoForImageClassification and converted.config.num_labels == 5
    assert same(converted.vision_model, model.vision_model)
    assert torch.equal(converted.classifier.weight, tensors["head.weight" if form == "v3_vit" else "fc.weight"])
    assert same(MocoForImageClassification.from_pretrained(tmp_path / "out"), converted)


def test_a_square_queue_is_turned_too():
    model = MocoForPreTraining(MocoConfig.variant("tiny", queue_size=16, projection_hidden_size=128))
    converted = convert(release(model)["state_dict"], config={"vision_config": {"image_size": 32}})
    assert torch.equal(converted.queue.features, model.queue.features)


def test_heads_of_a_width_that_was_never_published_are_asked_for():
    narrow = {**VIT, "hidden_size": 64, "num_attention_heads": 2}
    model = MocoForPreTraining(MocoConfig.variant("tiny", **{**FORMS["v3_vit"], "vision_config": narrow}))
    with pytest.raises(ValueError, match="the encoder's heads cannot be told from its width 64"):
        convert(release(model)["state_dict"])
    told = {"vision_config": {"num_attention_heads": 2}}
    assert convert(release(model)["state_dict"], config=told).config.vision_config.num_attention_heads == 2


def test_what_does_not_fit_is_listed():
    tensors = release(pretraining("v2"))["state_dict"]
    del tensors["module.encoder_k.layer2.0.bn1.weight"]
    tensors["module.encoder_q.layer5.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(KeyMismatch) as caught:
        convert(tensors)
    assert caught.value.missing == ["encoder_k.layer2.0.bn1.weight"]
    assert caught.value.extra == ["encoder_q.layer5.0.conv1.weight"]
    with pytest.raises(KeyMismatch, match="encoder_q.fc"):
        convert(release(pretraining("v2"))["state_dict"], variant="v1")


def test_what_is_not_moco(tmp_path):
    with pytest.raises(ValueError, match="not a MoCo checkpoint.*found layer.weight"):
        convert({"layer.weight": torch.zeros(1)})
    pretraining("v1").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hfvlm folder already"):
        convert(tmp_path)


def test_the_command(tmp_path, capsys):
    torch.save(release(pretraining("v2")), tmp_path / "moco.pth")
    paths = ["--checkpoint", str(tmp_path / "moco.pth"), "--output"]
    assert main([*paths, str(tmp_path / "model"), "--image-size", "32", "--verify"]) == 0
    assert "temperature 0.2, momentum 0.999" in capsys.readouterr().out
    assert main([*paths, str(tmp_path / "tower"), "--image-size", "32", "--part", "vision"]) == 0
    assert "not part of the encoder" in capsys.readouterr().out
    assert main([*paths, str(tmp_path / "model")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert main([*paths, str(tmp_path / "back"), "--to", "transformers"]) == 1
    assert "transformers has no such architecture" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
