"""ALIGN's converter as people use it, and what it says when a checkpoint is not what it should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny import tiny_model, tiny_tokenizer

import hfvlm
from hfvlm.conversion.convert_align import convert, main, to_transformers
from hfvlm.conversion.rules import KeyMismatch
from hfvlm.models.align.processing_align import image_processor_for


ROOT = Path(__file__).parents[2]


def align(**overrides) -> hfvlm.AlignModel:
    tower = {"padding": "fixed", **overrides.pop("vision_config", {})}
    return tiny_model("hfvlm_align", "AutoModel", vision_config=tower, **overrides)


@pytest.fixture(scope="module")
def model():
    return align()


@pytest.fixture
def source(model, tmp_path) -> Path:
    """A folder as transformers writes it, its configuration with the size that nothing is trained at."""
    theirs = to_transformers(model)
    theirs.config.vision_config.image_size = 600
    theirs.save_pretrained(tmp_path / "in-tree")
    transformers.AlignProcessor(image_processor_for(32), tiny_tokenizer()).save_pretrained(tmp_path / "in-tree")
    return tmp_path / "in-tree"


def arguments(source: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(source), "--output", str(source.parent / "out"), *more]


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() - other.keys() <= {"text_pooler.weight", "text_pooler.bias"} and other.keys() <= one.keys()
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_the_image_size_is_the_image_processors(source, model):
    converted = convert(source, verify=True)
    assert_same_weights(converted, model)
    assert converted.config.vision_config.image_size == 32 and not converted.training
    for name in (image.name for image in source.glob("*processor*")):
        (source / name).unlink()
    assert convert(source).config.vision_config.image_size == 600


def test_another_image_size_goes_to_the_processor_too(source):
    assert main(arguments(source, "--image-size", "48")) == 0
    out = source.parent / "out"
    assert hfvlm.AlignModel.from_pretrained(out).config.vision_config.image_size == 48
    images = hfvlm.AlignProcessor.from_pretrained(out).image_processor
    assert (images.size.height, images.crop_size.height) == (57, 48)  # in the proportion of the folder
    assert images.rescale_offset and not images.do_normalize


def test_fields_over_those_of_the_checkpoint(source):
    told = {"min_temperature": 0.02, "vision_config": {"freeze_batch_norm": True}}
    config = convert(source, config=told).config
    assert config.min_temperature == 0.02 and config.vision_config.freeze_batch_norm
    assert config.vision_config.batch_norm_momentum == 0.01  # theirs is the share that stays
    with pytest.raises(ValueError, match="unknown fields for AlignConfig: logit_scale"):
        convert(source, config={"logit_scale": 1.0})
    with pytest.raises(KeyMismatch, match="vision_model.embeddings.convolution.weight: is"):
        convert(source, config={"projection_dim": 80, "vision_config": {"width_coefficient": 2.0}})


def test_older_weights_store_counted_numbers_too(model):
    theirs = to_transformers(model)
    state = {
        **theirs.state_dict(),
        "text_model.embeddings.position_ids": torch.arange(40)[None],
        "text_model.embeddings.token_type_ids": torch.zeros(1, 40),
    }
    theirs.state_dict = lambda: state
    assert_same_weights(convert(theirs), model)


def test_missing_extra_and_wrongly_shaped_keys_are_each_listed(model):
    theirs = to_transformers(model)
    state = dict(theirs.state_dict())
    del state["temperature"], state["text_model.encoder.layer.1.attention.self.key.bias"]
    state["visual_projection.weight"] = torch.zeros(4, 4)
    state["vision_model.embeddings.convolution.weight"] = torch.zeros(32, 3, 5, 5)
    theirs.state_dict = lambda: state
    with pytest.raises(KeyMismatch) as caught:
        convert(theirs)
    for line in (
        "temperature",
        "text_model.encoder.layer.1.attention.self.key.bias",
        "visual_projection.weight",
        "vision_model.embeddings.convolution.weight: is [32, 3, 5, 5], must be [32, 3, 3, 3]",
    ):
        assert line in str(caught.value)


def test_what_is_no_align_checkpoint(model):
    state = to_transformers(model).state_dict()
    with pytest.raises(ValueError, match="give the folder, not the file alone"):
        convert(state)
    with pytest.raises(ValueError, match="not an ALIGN checkpoint: expected .* found encoder.weight"):
        convert({"encoder.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="it is an hfvlm folder already"):
        convert(model)
    theirs = to_transformers(model)
    theirs.config.vision_config.image_size = [32, 48]
    with pytest.raises(ValueError, match="image_size is 32x48: only squares"):
        convert(theirs)


VIT = {"model_type": "hfvlm_vit_tower", "hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 1}
CLIP_TEXT = {"model_type": "hfvlm_clip_text_tower", "hidden_size": 48, "num_hidden_layers": 1, "eos_token_id": 63}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vision_config": {"padding": "same"}}, 'no place for vision_config.padding="same"'),
        ({"vision_config": {"head_channels": 40}}, "no place for vision_config.head_channels"),
        ({"vision_config": {"hidden_size": 24}}, "hidden_size that is not the last map's channels"),
        ({"vision_config": {"lite": True}}, "lite=True"),
        ({"project_images": True}, "project_images=True"),
        ({"text_projection_bias": False}, "text_projection_bias=False"),
        ({"text_config": {"type_vocab_size": 0}}, "text_config.type_vocab_size=0"),
        ({"vision_config": {**VIT, "num_attention_heads": 4, "image_size": 32}}, "tower is hfvlm_vit_tower"),
        ({"text_config": {**CLIP_TEXT, "num_attention_heads": 4}}, "tower is hfvlm_clip_text_tower"),
    ],
)
def test_what_transformers_align_cannot_hold(overrides, message):
    if "model_type" in overrides.get("vision_config", {}):
        built = tiny_model("hfvlm_align", "AutoModel", **overrides)
    else:
        built = align(**overrides)
    with pytest.raises(ValueError, match=message):
        to_transformers(built)


def test_an_opening_residual_matters_only_where_a_shape_allows_one():
    to_transformers(align(vision_config={"opening_residual": True}))
    stages = ((1, 3, 1, 1, 32), (1, 3, 1, 6, 40))  # the first block has the stem's 32 channels
    with pytest.raises(ValueError, match="opening_residual=True"):
        to_transformers(align(vision_config={"opening_residual": True, "stages": stages}))


def test_what_is_not_carried_over_is_said(model, tmp_path, capsys):
    other = align(label_smoothing=0.0)
    other.save_pretrained(tmp_path / "in-tree")
    assert main(arguments(tmp_path / "in-tree", "--to", "transformers")) == 0
    said = capsys.readouterr().out
    assert "objective and label_smoothing are not carried over" in said and "no processor written" in said
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")) is transformers.AlignModel


def test_the_command_in_a_fresh_interpreter(source, model):
    script = str(ROOT / "conversion" / "convert_align.py")
    done = subprocess.run(
        [sys.executable, script, *arguments(source, "--verify")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same_weights(hfvlm.AlignModel.from_pretrained(source.parent / "out"), model)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in-tree", "out"]


@pytest.mark.parametrize("wrong", ["no folder", "missing key", "variant", "config", "NaN", "output"])
def test_the_command_fails_in_one_line_and_leaves_nothing(wrong, source, capsys):
    more, names = ["--verify"], ["in-tree"]
    if wrong == "no folder":
        (source / "model.safetensors").unlink()
    elif wrong in ("missing key", "NaN"):
        theirs = transformers.AlignModel.from_pretrained(source)
        state = theirs.state_dict()
        if wrong == "NaN":
            state["text_projection.bias"].fill_(float("nan"))
        else:
            del state["text_projection.bias"]
        (source / "model.safetensors").unlink()
        torch.save(state, source / "pytorch_model.bin")
    elif wrong == "variant":
        more += ["--variant", "b9"]
    elif wrong == "config":
        (source / "fields.json").write_text(json.dumps({"min_temperature": -1.0}))
        more += ["--config", str(source / "fields.json")]
    else:
        (source.parent / "out").mkdir()
        (source.parent / "out" / "mine.txt").write_text("keep")
        names = ["in-tree", "out"]
    assert main(arguments(source, *more)) == 1
    said = capsys.readouterr().err
    assert said.startswith("convert_align: error: ") and "Traceback" not in said
    assert sorted(path.name for path in source.parent.iterdir()) == names
