"""transformers' own ViT with the same weights: the same numbers, and back again bit for bit."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil

import hfvlm
from hfvlm.conversion.convert_vit import convert, main, to_transformers


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
CLASSES = {"features": "ViTModel", "classes": "ViTForImageClassification", "masked": "ViTForMaskedImageModeling"}


def in_tree(kind: str, seed: int = 0, **fields):
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=40,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=8,
        encoder_stride=8,
        **{"image_size": 32, "pooler_output_size": 24, "id2label": {0: "cat", 1: "dog", 2: "cow"}, **fields},
    )
    model = getattr(transformers, CLASSES[kind])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.15)
    return model


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features(pixels, attention):
    theirs = in_tree("features")
    ours = convert(theirs)
    assert type(ours) is hfvlm.VitModel
    recorded = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    for model in (theirs, ours):
        model.set_attn_implementation(attention)
    expected, got = theirs(pixels, **recorded), ours(pixels, **recorded)
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, **TOLERANCE)
    torch.testing.assert_close(got.hidden_states, expected.hidden_states, **TOLERANCE)
    assert len(got.hidden_states) == 3
    if attention == "eager":
        torch.testing.assert_close(got.attentions, expected.attentions, **TOLERANCE)
        assert len(got.attentions) == 2


def test_scores_and_every_kind_of_loss(pixels):
    theirs = in_tree("classes")
    ours = convert(theirs)
    assert ours.config.id2label == {0: "cat", 1: "dog", 2: "cow"} and ours.config.label2id["cow"] == 2
    torch.testing.assert_close(ours(pixels).logits, theirs(pixels).logits, **TOLERANCE)
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for labels in (torch.tensor([2, 0, 1]), several):
        for model in (theirs, ours):
            model.config.problem_type = None
        expected = theirs(pixels, labels=labels)
        torch.testing.assert_close(ours(pixels, labels=labels).loss, expected.loss, **TOLERANCE)
    one = in_tree("classes", id2label={0: "score"})
    number = torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(convert(one)(pixels, labels=number).loss, one(pixels, labels=number).loss, **TOLERANCE)


@pytest.mark.parametrize("kind", CLASSES)
def test_round_trip_keeps_every_bit(kind):
    theirs = in_tree(kind)
    ours = convert(theirs)
    back = to_transformers(ours)
    if kind == "masked":  # a head that names colours has no place there
        assert equal_weights(back.layers, theirs.vit.layers)
        return
    assert equal_weights(back, theirs)
    again = convert(back)
    assert equal_weights(again, ours)
    assert again.config.to_dict() == ours.config.to_dict()


def test_masked_image_modelling_keeps_its_mask_token(pixels):
    theirs = in_tree("masked")
    ours = convert(theirs)
    everything = torch.ones(3, 16, dtype=torch.bool)
    expected = theirs.vit(pixels, bool_masked_pos=everything).last_hidden_state
    ours.config.mim_mask_share, ours.config.mim_swap_share = 1.0, 0.0
    ours.colour_head = torch.nn.Identity()
    got = ours(pixels, bool_masked_pos=everything, return_loss=False).logits
    torch.testing.assert_close(got, expected[:, 1:], **TOLERANCE)


@pytest.mark.parametrize("size", [(48, 48), (48, 64)])
def test_other_image_sizes(pixels, size):
    theirs = in_tree("features")
    larger = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")
    expected = theirs(larger, interpolate_pos_encoding=True).last_hidden_state
    got = convert(theirs)(larger, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(got, expected, **TOLERANCE)
    if size == (48, 48):
        torch.testing.assert_close(convert(theirs, image_size=48)(larger).last_hidden_state, expected, **TOLERANCE)


def test_without_biases_and_with_another_activation(pixels):
    theirs = in_tree("features", qkv_bias=False, hidden_act="relu", layer_norm_eps=1e-3)
    torch.testing.assert_close(convert(theirs)(pixels).pooler_output, theirs(pixels).pooler_output, **TOLERANCE)


@pytest.mark.parametrize("kind", CLASSES)
def test_folders_convert_both_ways_on_the_command_line(kind, pixels, tmp_path):
    """Folders hold other names than the classes."""
    theirs, source = in_tree(kind), tmp_path / "in-tree"
    theirs.save_pretrained(source, max_shard_size="50KB")
    ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]).save_pretrained(source)
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    ours = type(convert(theirs)).from_pretrained(tmp_path / "ours")
    processor = hfvlm.VitProcessor.from_pretrained(tmp_path / "ours")
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3] == list(ours.config.image_mean)
    there = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(there) == 0
    back = ViTImageProcessorPil.from_pretrained(tmp_path / "back")
    assert list(back.image_mean) == [0.5, 0.4, 0.3] and dict(back.size) == {"height": 32, "width": 32}
    if kind != "masked":
        assert equal_weights(getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "back"), theirs)


def test_a_file_with_the_names_of_now(tmp_path):
    theirs = in_tree("classes")
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    assert equal_weights(convert(tmp_path), convert(theirs))


def test_the_dtype_is_kept(tmp_path):
    half = in_tree("classes").to(torch.bfloat16)
    ours = convert(half)
    assert ours.dtype == torch.bfloat16 and to_transformers(ours).dtype == torch.bfloat16
    ours.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["classifier.weight"].dtype == torch.bfloat16


def test_what_transformers_vit_cannot_hold():
    for tower in ({"pooling": "mean", "class_token": False}, {"position_embedding": "factorised"}, {"pre_norm": True}):
        model = hfvlm.VitModel(hfvlm.VitConfig.variant("tiny", vision_config=tower))
        with pytest.raises(ValueError, match=rf"no place for .*vision_config: .*{next(iter(tower))}|class_token"):
            to_transformers(model)
    model = hfvlm.VitForImageClassification(hfvlm.VitConfig.variant("tiny", representation_size=8))
    with pytest.raises(ValueError, match="representation_size is set"):
        to_transformers(model)


def test_fixed_positions_become_a_table(pixels):
    model = hfvlm.VitModel(hfvlm.VitConfig.variant("tiny", vision_config={"position_embedding": "sincos"})).eval()
    torch.testing.assert_close(
        to_transformers(model)(pixels).last_hidden_state, model(pixels).last_hidden_state, **TOLERANCE
    )


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match="image_size is 32x48: only squares"):
        convert(in_tree("features", image_size=[32, 48]))
    with pytest.raises(ValueError, match="pooler_act is 'relu': only tanh"):
        convert(in_tree("features", pooler_act="relu"))


@pytest.mark.parametrize(
    "size", [{"height": 40, "width": 40}, {"shortest_edge": 40}], ids=["squashed", "shortest edge"]
)
def test_images_that_are_resized_and_then_cropped_stay_so(size, tmp_path):
    """As DeiT's, which come as a ViT: the pixels are the folder's own."""
    in_tree("classes").save_pretrained(tmp_path / "in-tree")
    theirs = ViTImageProcessorPil(size=size, do_center_crop=True, crop_size={"height": 32, "width": 32}, resample=3)
    theirs.save_pretrained(tmp_path / "in-tree")
    convert(tmp_path / "in-tree", output=tmp_path / "ours")
    photo = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    ours = hfvlm.VitProcessor.from_pretrained(tmp_path / "ours")
    assert torch.equal(ours(photo)["pixel_values"], theirs(photo, return_tensors="pt")["pixel_values"])
    convert(tmp_path / "ours", image_size=48, output=tmp_path / "larger")
    larger = hfvlm.VitProcessor.from_pretrained(tmp_path / "larger").image_processor
    assert dict(larger.crop_size) == {"height": 48, "width": 48}
    assert dict(larger.size) == dict.fromkeys(size, 60)
