"""ViT's converter: timm's weights, the original's arrays, hybrids, other image sizes, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.vit_reference import flax_arrays, forward, weights
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor

import hfvlm
from hfvlm.conversion.convert_vit import convert, main
from hfvlm.conversion.rules import KeyMismatch
from hfvlm.conversion.vit_rules import release_fields
from hfvlm.models.vit.configuration_vit import VARIANTS


HEADS = {"vision_config": {"num_attention_heads": 4}}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def pixels(size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def scores(model, x: torch.Tensor) -> torch.Tensor:
    outputs = model(x)
    return outputs.logits if "logits" in outputs else outputs.pooler_output


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"labels": 0},
        {"representation": 16},
        {"pooled_norm": True},
        {"class_token": False, "pooled_norm": True},
        {"class_token": False},
    ],
    ids=["class token", "no head", "pre-logits", "mean", "mean alone", "mean of normed"],
)
def test_timm(form):
    source = weights(**form)
    model = convert(source, config=HEADS, verify=True)
    torch.testing.assert_close(scores(model, pixels()), forward(source, pixels(), 4), **TOLERANCE)
    head = hfvlm.VitModel if form.get("labels") == 0 else hfvlm.VitForImageClassification
    assert type(model) is head and not model.training
    assert model.config.representation_size == form.get("representation")


@pytest.mark.parametrize(("prefix", "newer"), [("", False), ("opt/target/", False), ("params/img/", True)])
@pytest.mark.parametrize("form", [{}, {"labels": 0}, {"representation": 16}], ids=["head", "no head", "pre-logits"])
def test_the_originals_arrays_tell_the_heads_too(prefix, newer, form, tmp_path):
    source = weights(**form)
    np.savez(tmp_path / "vit.npz", **flax_arrays(source, 4, prefix, newer))
    model = convert(tmp_path / "vit.npz", verify=True)
    assert model.config.vision_config.num_attention_heads == 4
    expected = forward(source, pixels(), 4, gelu="tanh")
    torch.testing.assert_close(scores(model, pixels()), expected, **TOLERANCE)
    assert not torch.allclose(forward(source, pixels(), 4), expected, **TOLERANCE)  # the exact one is another


def test_blocks_that_are_stacked():
    source = weights()
    arrays = {name: torch.from_numpy(array) for name, array in flax_arrays(source, 4).items()}
    first = [name for name in arrays if "encoderblock_0/" in name]
    for name in first:
        both = [arrays.pop(name), arrays.pop(name.replace("encoderblock_0", "encoderblock_1"))]
        arrays[name.replace("encoderblock_0", "encoderblock")] = torch.stack(both)
    torch.testing.assert_close(convert(arrays)(pixels()).logits, forward(source, pixels(), 4, "tanh"), **TOLERANCE)


@pytest.mark.parametrize(("stages", "patch"), [((1, 1, 2), 1), ((1, 1), 2)], ids=["stride 16", "stride 8"])
def test_hybrids(stages, patch, tmp_path):
    source = weights(stages=stages, patch=patch, depth=1)
    x, stride = pixels(64), 2 ** (len(stages) + 1)
    expected = forward(source, x, 4)
    model = convert(source, config=HEADS, verify=True, output=tmp_path / "hybrid")
    assert model.config.vision_config.patch_size == stride * patch
    torch.testing.assert_close(model(x).logits, expected, **TOLERANCE)
    torch.testing.assert_close(
        AutoModelForImageClassification.from_pretrained(tmp_path / "hybrid")(x).logits, expected
    )
    np.savez(tmp_path / "vit.npz", **flax_arrays(source, 4))
    expected = forward(source, x, 4, gelu="tanh")
    torch.testing.assert_close(convert(tmp_path / "vit.npz")(x).logits, expected, **TOLERANCE)


def test_a_stem_without_stages():
    source = weights(stages=(1, 1), depth=1)
    start = "patch_embed.backbone."
    source = {key.replace("stem.", ""): value for key, value in source.items() if "stages." not in key}
    source["patch_embed.proj.weight"] = torch.randn(24, 64, 4, 4)
    model = convert(source, config=HEADS, verify=True)
    assert model.config.vision_config.patch_size == 16
    own = model.state_dict()["vision_model.patch_embed.backbone.bit.embedder.convolution.weight"]
    assert torch.equal(own, source[f"{start}conv.weight"])


DESCRIPTION = {
    "architecture": "vit_base_patch8_32",
    "num_classes": 3,
    "label_names": ["n01", "n02", "n03"],
    "label_descriptions": {"n01": "tench", "n03": "crane"},
    "global_pool": "token",
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    },
}


def timm_folder(folder: Path, source: dict[str, torch.Tensor], **changes) -> Path:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in source.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**DESCRIPTION, **changes}))
    return folder


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("older", [False, True])
def test_timms_own_description(mode, older, tmp_path):
    """How images are prepared, and the classes' names; older descriptions have it all in one place."""
    images = {**DESCRIPTION["pretrained_cfg"], "crop_mode": mode}
    folder = timm_folder(tmp_path / "timm", weights(labels=3), pretrained_cfg=images)
    if older:
        described = {**DESCRIPTION, **images, "labels": DESCRIPTION["label_names"]}
        described = {name: value for name, value in described.items() if name not in ("pretrained_cfg", "label_names")}
        (folder / "config.json").write_text(json.dumps(described))
    model = convert(folder / "model.safetensors", config=HEADS, output=tmp_path / "out")
    assert model.config.id2label == {0: "tench", 1: "n02", 2: "crane"} and model.config.label2id["crane"] == 2
    assert list(model.config.image_mean) == [0.4, 0.5, 0.6]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8))
    size = (49, 35) if mode == "center" else (35, 35)  # 32 / 0.9, and in proportion
    left, top = ((side - 32) // 2 for side in size)
    crop = photo.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    expected = (np.asarray(crop, dtype=np.float32) / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    got = AutoProcessor.from_pretrained(tmp_path / "out")(photo)["pixel_values"][0]
    torch.testing.assert_close(got, torch.from_numpy(expected.transpose(2, 0, 1)))


def test_what_timms_description_says_of_the_tower(tmp_path):
    source, x = weights(labels=0, pre_norm=True), pixels()
    exact = timm_folder(tmp_path / "exact", source, architecture="vit_base_patch8_clip_32")
    quick = timm_folder(tmp_path / "quick", source, architecture="vit_base_patch8_clip_quickgelu_32")
    told = timm_folder(tmp_path / "told", source, model_args={"act_layer": "gelu_tanh", "num_heads": 4})
    for folder, gelu in ((exact, "none"), (quick, "sigmoid"), (told, "tanh")):
        model = convert(folder, config=None if folder is told else HEADS)
        torch.testing.assert_close(scores(model, x), forward(source, x, 4, gelu), **TOLERANCE)
        assert model.config.num_labels == 2  # names of classes that the weights do not have are left
    mean = timm_folder(tmp_path / "mean", weights(labels=3), global_pool="avg")
    assert convert(mean, config=HEADS).config.vision_config.pooling == "mean"
    for changes, named in (
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode is 'border'; here center, squash are known"),
        ({"model_args": {"act_layer": "mish"}}, "act_layer is 'mish'"),
    ):
        shutil.rmtree(mean)
        with pytest.raises(ValueError, match=named):
            convert(timm_folder(mean, weights(labels=3), **changes), config=HEADS)


def test_what_is_left_to_a_guess_is_said(tmp_path, capsys):
    source = weights(dim=128, depth=1, pre_norm=True)
    folder = timm_folder(tmp_path / "timm", source)

    def said(output: str) -> str:
        assert main(["--checkpoint", str(folder), "--output", str(tmp_path / output)]) == 0
        return capsys.readouterr().out

    described = said("one")
    assert '{"vision_config": {"hidden_act": "quick_gelu"}}' in described and "are squashed" not in described
    (folder / "config.json").unlink()
    assert "images are squashed, their mean and deviation 0.5" in said("two")
    timm_folder(tmp_path / "quick", source, architecture="vit_quickgelu")
    folder = tmp_path / "quick"
    assert "quick_gelu" not in said("three")


@pytest.mark.parametrize(("width", "heads"), [(1152, 16), (1280, 16), (1408, 16), (1664, 16), (768, 12)])
def test_heads_are_the_published_widths(width, heads):
    tensors = {"patch_embed.proj.weight": torch.empty(width, 3, 14, 14, device="meta")}
    assert release_fields(tensors, flax=False)["vision_config"]["num_attention_heads"] == heads


def test_positions_without_a_place_for_the_class_token():
    source = weights()
    source["pos_embed"][:, 0] = 0
    without = {**source, "pos_embed": source["pos_embed"][:, 1:]}
    torch.testing.assert_close(
        convert(without, config=HEADS)(pixels()).logits, forward(source, pixels(), 4), **TOLERANCE
    )


def test_attention_without_biases():
    source = weights()
    for i in range(2):
        source[f"blocks.{i}.attn.qkv.bias"].zero_()
    without = {key: value for key, value in source.items() if not key.endswith("qkv.bias")}
    torch.testing.assert_close(
        convert(without, config=HEADS)(pixels()).logits, forward(source, pixels(), 4), **TOLERANCE
    )


def test_sizes_need_a_variant_only_for_heads_that_are_not_64_wide():
    assert convert(weights(dim=128, depth=1)).config.vision_config.num_attention_heads == 2
    with pytest.raises(ValueError, match="the tower's heads cannot be told from its width 24"):
        convert(weights())
    wide = weights(dim=192, depth=1)
    with pytest.raises(KeyMismatch, match="missing"):
        convert(wide, variant="vit_ti_16")  # twelve blocks
    with pytest.raises(ValueError, match="unknown ViT variant 'huge'; choose from vit_ti_16"):
        convert(wide, variant="huge")
    assert "r50_vit_b_16" in VARIANTS


def test_another_image_size_is_what_the_model_interpolates():
    source = weights()
    larger = convert(source, config=HEADS, image_size=48)
    x = pixels(48)
    same = convert(source, config=HEADS)(x, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(larger(x).logits, same)
    linear = convert(
        source, config={"vision_config": {**HEADS["vision_config"], "interpolation": "bilinear"}}, image_size=48
    )
    assert not torch.allclose(linear(x).logits, same, atol=1e-3)
    with pytest.raises(ValueError, match=r"image_size \(50\) must be a multiple of patch_size"):
        convert(source, config=HEADS, image_size=50)


def test_own_folders_for_another_image_size(tmp_path):
    tower = {"position_embedding": "factorised", "class_token": False, "pooling": "mean"}
    for name, fields in {"learned": {}, "factorised": tower, "sincos": {"position_embedding": "sincos"}}.items():
        model = hfvlm.VitForMaskedImageModeling(hfvlm.VitConfig.variant("tiny", vision_config=fields)).eval()
        model.save_pretrained(tmp_path / name)
        resized = convert(tmp_path / name, image_size=48, verify=True)
        assert type(resized) is type(model) and resized.config.vision_config.image_size == 48
        x, chosen = pixels(48), torch.zeros(2, 36)
        expected = model(x, bool_masked_pos=chosen, interpolate_pos_encoding=True).logits
        if name != "sincos":  # made anew for the larger grid
            torch.testing.assert_close(resized(x, bool_masked_pos=chosen).logits, expected)


def test_the_command_writes_a_folder_that_pipelines_load(tmp_path, capsys):
    np.savez(tmp_path / "vit.npz", **flax_arrays(weights(), 4))
    (tmp_path / "fields.json").write_text(json.dumps({"id2label": {str(i): f"class {i}" for i in range(5)}}))
    out = tmp_path / "out"
    arguments = [
        "--checkpoint",
        tmp_path / "vit.npz",
        "--output",
        out,
        "--config",
        tmp_path / "fields.json",
        "--verify",
    ]
    assert main([str(part) for part in arguments]) == 0
    assert "parameters" in capsys.readouterr().out
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.id2label[3] == "class 3" and model.config.num_labels == 5
    assert type(AutoModel.from_pretrained(out)) is hfvlm.VitModel
    assert dict(AutoProcessor.from_pretrained(out).image_processor.size) == {"height": 32, "width": 32}
    assert list(AutoProcessor.from_pretrained(out).image_processor.image_mean) == [0.5, 0.5, 0.5]


def test_what_does_not_fit_is_listed():
    source = weights()
    del source["blocks.1.attn.proj.bias"], source["norm.weight"]
    source["ls1.gamma"] = torch.zeros(24)
    source["head.weight"] = torch.zeros(5, 7)
    with pytest.raises(KeyMismatch) as caught:
        convert(source, config=HEADS)
    for line in ("blocks.1.attn.proj.bias", "norm.weight", "ls1.gamma", "head.weight: is [5, 7], must be [5, 24]"):
        assert line in str(caught.value)


@pytest.mark.parametrize("key", ["pos_embed", "Transformer/posembed_input/pos_embedding"])
def test_positions_of_no_square_grid(key):
    source = weights()
    if "/" in key:
        source = {name: torch.from_numpy(array) for name, array in flax_arrays(source, 4).items()}
    source[key] = torch.zeros(1, 19, 24)
    with pytest.raises(ValueError, match="has 19 positions: not a square grid"):
        convert(source, config=HEADS)


def test_what_is_no_vit(tmp_path):
    with pytest.raises(ValueError, match="not a ViT checkpoint: expected patch_embed.proj.weight.*found layer.weight"):
        convert({"layer.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="need their config.json of model_type 'vit'"):
        convert({"vit.embeddings.cls_token": torch.zeros(1)})
    np.savez(tmp_path / "unsafe.npz", **{"embedding/kernel": np.array([{"code": 1}], dtype=object)})
    with pytest.raises(ValueError, match="allow_pickle=False"):
        convert(tmp_path / "unsafe.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="cut.npz is damaged or not a checkpoint"):
        convert(tmp_path / "cut.npz")


def test_verify_refuses_what_is_not_finite(tmp_path, capsys):
    source = weights()
    source["norm.bias"] = source["norm.bias"] * float("nan")
    torch.save(source, tmp_path / "vit.pth")
    (tmp_path / "heads.json").write_text(json.dumps(HEADS))
    arguments = ["--checkpoint", "vit.pth", "--output", "out", "--config", "heads.json"]
    arguments = [part if part.startswith("--") else str(tmp_path / part) for part in arguments]
    assert main([*arguments, "--verify"]) == 1
    assert capsys.readouterr().err.startswith("convert_vit: error: the converted model's logits are not finite")
    assert not (tmp_path / "out").exists()
