"""BLIP's converter as people use it, and what it says when a checkpoint is not what it should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny import tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, AutoProcessor

import hfvlm
from hfvlm.conversion.convert_blip import convert, convert_vision, main, to_release_keys, to_transformers
from hfvlm.conversion.rules import KeyMismatch
from hfvlm.encoders.vit import VitTower
from hfvlm.models.blip.configuration_blip import VARIANTS


ROOT = Path(__file__).parents[2]
HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", *(f"word{i}" for i in range(54))]


@pytest.fixture(scope="module")
def model():
    return tiny_model("hfvlm_blip", "AutoModelForImageTextToText")


@pytest.fixture
def release(model) -> dict[str, torch.Tensor]:
    """The state dict that the original would have saved."""
    return {**to_release_keys(model.state_dict()), "text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}


@pytest.fixture
def folder(release, tmp_path) -> Path:
    """A release's file, its vocabulary and the fields that its shapes do not tell."""
    folder = tmp_path / "release"
    folder.mkdir()
    torch.save({"model": release}, folder / "captioner.pth")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "fields.json").write_text(json.dumps(HEADS))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    paths = {"checkpoint": folder / "captioner.pth", "output": folder.parent / "out", "config": folder / "fields.json"}
    return [*(str(part) for name, path in paths.items() for part in (f"--{name}", path)), *more]


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_geometry_comes_from_the_shapes(model, release):
    converted = convert(release, config=HEADS)
    assert_same_weights(converted, model)
    ours, theirs = converted.config, model.config
    for part in ("vision_config", "text_config"):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            assert getattr(getattr(ours, part), name) == getattr(getattr(theirs, part), name)
    assert (ours.vision_config.image_size, ours.vision_config.patch_size) == (32, 8)
    text = ours.text_config
    assert (text.vocab_size, text.bos_token_id, text.eos_token_id) == (64, 62, 102)
    assert text.layer_norm_eps == 1e-12 and ours.vision_config.layer_norm_eps == 1e-6
    assert ours.release_beam_search and not converted.training


def test_published_sizes_need_no_config():
    """Heads are 64 wide unless told; only the widths are real here."""
    config = hfvlm.BlipConfig(
        vision_config={"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32},
        text_config={"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 1, "vocab_size": 110},
    )
    converted = convert(to_release_keys(hfvlm.BlipForConditionalGeneration(config).state_dict()))
    assert converted.config.vision_config.num_attention_heads == 2
    assert converted.config.text_config.num_attention_heads == 3


def test_heads_that_cannot_be_told_are_asked_for(release):
    with pytest.raises(ValueError, match="vision tower's heads cannot be told from its width 40"):
        convert(release)
    with pytest.raises(ValueError, match="text tower's heads.*num_attention_heads"):
        convert(release, config={"vision_config": {"num_attention_heads": 4}})


def test_variants_and_configs(release, monkeypatch):
    with pytest.raises(ValueError, match="unknown BLIP variant 'huge'; choose from base, large"):
        convert(release, variant="huge")
    assert convert(release, variant="tiny").config.text_config.bos_token_id == 5
    wide = {"hidden_size": 80, "num_attention_heads": 4}
    monkeypatch.setitem(VARIANTS, "wide", {"vision_config": wide, "text_config": {"encoder_hidden_size": 80}})
    with pytest.raises(KeyMismatch, match=r"visual_encoder.cls_token: is \[1, 1, 40\], must be \[1, 1, 80\]"):
        convert(release, variant="wide", config=HEADS)
    with pytest.raises(ValueError, match="unknown fields for BertTowerConfig: heads"):
        convert(release, config={**HEADS, "text_config": {"num_attention_heads": 4, "heads": 4}})
    with pytest.raises(ValueError, match="unknown fields for BlipConfig: num_attention_heads"):
        convert(release, config={**HEADS, "num_attention_heads": 4})
    told = {"vision_config": {"num_attention_heads": 8, "layer_norm_eps": 1e-3}, "text_config": HEADS["text_config"]}
    assert convert(release, config=told).config.vision_config.layer_norm_eps == 1e-3


def test_missing_extra_and_wrongly_shaped_keys_are_each_listed(release):
    del release["visual_encoder.pos_embed"], release["text_decoder.bert.encoder.layer.1.attention.self.key.bias"]
    release["text_decoder.bert.pooler.dense.weight"] = torch.zeros(48, 48)
    release["visual_encoder.blocks.1.mlp.fc1.weight"] = torch.zeros(80, 7)
    with pytest.raises(KeyMismatch) as caught:
        convert(release, config=HEADS)
    for line in (
        "visual_encoder.pos_embed",
        "text_decoder.bert.encoder.layer.1.attention.self.key.bias",
        "text_decoder.bert.pooler.dense.weight",
        "visual_encoder.blocks.1.mlp.fc1.weight: is [80, 7], must be [80, 40]",
    ):
        assert line in str(caught.value)


def test_copies_that_differ_are_an_error(release):
    key = "text_decoder.cls.predictions.decoder.weight"
    release[key] = release[key] + 1
    with pytest.raises(KeyMismatch, match=key):
        convert(release, config=HEADS)


def pretraining_release(model) -> dict[str, torch.Tensor]:
    """As the original stores it: the decoder's copy of all but the self-attention, and two pointers in one."""
    release = to_release_keys(model.state_dict(), "pretraining")
    for key in [key for key in release if key.startswith("text_encoder.") and ".attention." not in key]:
        release["text_decoder.bert." + key.removeprefix("text_encoder.")] = release[key].clone()
    return release


def test_a_pretraining_checkpoint_gives_every_head(tmp_path):
    model = tiny_model("blip", "AutoModelForPreTraining")
    release = pretraining_release(model)
    converted = convert(release, config=HEADS, output=tmp_path / "blip", verify=True)
    assert type(converted) is hfvlm.BlipForPreTraining
    assert_same_weights(converted, model)
    assert (converted.config.projection_dim, converted.config.queue_size) == (32, 16)
    own = converted.state_dict()
    for head in ("BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipModel"):
        cls = getattr(hfvlm, head)
        loaded, info = cls.from_pretrained(tmp_path / "blip", output_loading_info=True)
        assert not info["missing_keys"], head
        assert all(torch.equal(value, own[name]) for name, value in loaded.state_dict().items()), head
    key = "text_decoder.bert.encoder.layer.0.output.dense.bias"
    with pytest.raises(KeyMismatch, match=f"copies that must be equal.*{key}".replace(".*", "[\\s\\S]*")):
        convert({**release, key: release[key] + 1}, config=HEADS)
    with pytest.raises(KeyMismatch, match="text_encoder.x"):
        convert({**release, "text_encoder.x": torch.zeros(1)}, config=HEADS)


def test_a_pretraining_folder_starts_a_head_that_answers(tmp_path):
    """As the release's checkpoint of the same weights does."""
    pretrained = tiny_model("blip", "AutoModelForPreTraining", vision_config={"hidden_size": 48})
    pretrained.save_pretrained(tmp_path / "start")
    tiny_processor("blip").save_pretrained(tmp_path / "start")
    options = ["--checkpoint", str(tmp_path / "start"), "--head", "answering", "--output", str(tmp_path / "out")]
    assert main([*options, "--verify"]) == 0
    ours = hfvlm.BlipForVisualQuestionAnswering.from_pretrained(tmp_path / "out")
    assert_same_weights(ours, convert(pretraining_release(pretrained), config=HEADS, head="answering"))
    assert hfvlm.BlipProcessor.from_pretrained(tmp_path / "out").tokenizer.vocab_size
    tiny_model("blip", "AutoModelForImageTextRetrieval").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made of a BlipForPreTraining folder, .*other is of BlipForImageTextRetr"):
        convert(tmp_path / "other", head="answering")
    with pytest.raises(ValueError, match="has its sizes"):
        convert(tmp_path / "start", head="answering", image_size=64)
    tiny_model("blip", "AutoModelForPreTraining").save_pretrained(tmp_path / "narrow")  # images of another width
    narrow = convert(tmp_path / "narrow", head="answering", verify=True).state_dict()
    assert narrow["text_decoder.layers.0.cross_attention.kv.weight"].isfinite().all()


def test_checkpoints_that_answer(tmp_path):
    """A release's, and of a pretraining checkpoint what question answering starts from."""
    wide = {"vision_config": {"hidden_size": 48}}  # a pretrained decoder reads images, one that answers reads texts
    model = tiny_model("blip", "AutoModelForVisualQuestionAnswering")
    release = to_release_keys(model.state_dict(), "answering")
    converted = convert(release, config=HEADS, output=tmp_path / "blip", verify=True)
    assert type(converted) is hfvlm.BlipForVisualQuestionAnswering
    assert_same_weights(converted, model)
    assert converted.config.release_beam_search and converted.config.answers_read_padding

    pretrained = tiny_model("blip", "AutoModelForPreTraining", **wide)
    started = convert(pretraining_release(pretrained), config=HEADS, head="answering", verify=True)
    assert type(started) is hfvlm.BlipForVisualQuestionAnswering and not started.config.answers_read_padding
    ours, theirs = started.state_dict(), pretrained.state_dict()
    for name in ("causal_attention.qkv.weight", "mlp.fc1.weight", "cross_attention.kv.weight"):
        assert torch.equal(ours[f"text_decoder.layers.1.{name}"], theirs[f"text_model.layers.1.{name}"])
    assert torch.equal(
        ours["text_model.layers.1.attention.qkv.bias"], theirs["text_model.layers.1.attention.qkv.bias"]
    )
    with pytest.raises(ValueError, match="made of a pretraining checkpoint, not 'answering' of one for captioning"):
        captioner = tiny_model("blip", "AutoModelForImageTextToText")
        convert(to_release_keys(captioner.state_dict()), config=HEADS, head="answering")


@pytest.mark.parametrize("head", ["retrieval", "matching"])
def test_retrieval_checkpoints_with_their_queue_or_without(head, tmp_path):
    model = tiny_model("blip", "AutoModelForImageTextRetrieval", **({} if head == "retrieval" else {"momentum": None}))
    converted = convert(to_release_keys(model.state_dict(), head), config=HEADS, verify=True)
    own = dict(model.state_dict())
    own["temp"] = own["temp"] if head == "retrieval" else converted.temp
    assert all(torch.equal(value, own[name]) for name, value in converted.state_dict().items())
    assert (converted.config.momentum is None) == (head == "matching")


def test_retrieval_in_transformers_format_both_ways(tmp_path):
    model = tiny_model("blip", "AutoModelForImageTextRetrieval", momentum=None)
    theirs = to_transformers(model)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = convert(tmp_path / "theirs", config=HEADS)
    assert_same_weights(ours, model)
    batch = {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_ids": torch.randint(6, 60, (2, 9)),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }
    outputs = ours(**batch)
    similarity = theirs(**batch, use_itm_head=False).itm_score
    torch.testing.assert_close(ours.temp * outputs.logits_per_image, similarity, rtol=1e-5, atol=1e-5)
    tokens = outputs.vision_model_output.last_hidden_state
    states = ours.text_model(
        batch["input_ids"], attention_mask=batch["attention_mask"], encoder_hidden_states=tokens
    ).last_hidden_state
    torch.testing.assert_close(ours.itm_head(states[:, 0]), theirs(**batch).itm_score, rtol=1e-5, atol=1e-5)


def test_the_image_tower_of_any_head(model, release, tmp_path):
    retrieval = {key: value for key, value in release.items() if key.startswith("visual_encoder.")}
    retrieval |= {key: torch.zeros(1) for key in ("text_encoder.embeddings.x", "itm_head.bias", "vision_proj.weight")}
    alone = {key: value for key, value in retrieval.items() if key.startswith("visual_encoder.")}
    with pytest.raises(ValueError, match="neither text_encoder.*--part vision"):
        convert(alone, config=HEADS)
    tower = convert_vision(retrieval, config=HEADS, output=tmp_path / "tower", verify=True)
    assert_same_weights(tower, model.vision_model)
    assert_same_weights(VitTower.from_pretrained(tmp_path / "tower"), tower)
    larger = convert_vision(retrieval, config=HEADS, image_size=64)
    assert larger.config.image_size == 64 and larger.position_embedding.shape == (1, 65, 40)
    with pytest.raises(KeyMismatch, match="visual_encoder.head.weight"):
        convert_vision({**retrieval, "visual_encoder.head.weight": torch.zeros(1)}, config=HEADS)


def test_image_sizes_that_cannot_be(release):
    with pytest.raises(ValueError, match=r"image_size \(50\) must be a multiple of patch_size"):
        convert(release, config=HEADS, image_size=50)
    release["visual_encoder.pos_embed"] = torch.zeros(1, 16, 40)
    with pytest.raises(ValueError, match="16 positions: not a class token and a square grid"):
        convert(release, config=HEADS)


def test_the_dtype_is_the_checkpoints(release):
    half = {key: value.half() if value.is_floating_point() else value for key, value in release.items()}
    assert convert(half, config=HEADS).dtype == torch.float16
    half["visual_encoder.norm.bias"] = release["visual_encoder.norm.bias"]
    assert convert(half, config=HEADS).dtype == torch.float32


def test_what_is_not_blip(model, tmp_path):
    with pytest.raises(ValueError, match="not a BLIP checkpoint.*found layer.weight"):
        convert({"layer.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="need their config.json"):
        convert({"vision_model.embeddings.class_embedding": torch.zeros(1)})
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hfvlm folder already"):
        convert(tmp_path)


def test_verify_refuses_what_is_not_finite(release, tmp_path):
    release["visual_encoder.norm.bias"] = release["visual_encoder.norm.bias"] * float("nan")
    with pytest.raises(ValueError, match="logits are not finite"):
        convert(release, config=HEADS, output=tmp_path / "out", verify=True)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_makes_a_processor(folder, tmp_path):
    convert(folder / "captioner.pth", config=folder / "fields.json", output=tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    tokenizer, text = processor.tokenizer, model.config.text_config
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (62, 3, 0)
    assert tokenizer.bos_token == "[DEC]" and tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [62, 63]
    assert processor.prompt == "a picture of "
    assert processor(text="a picture of ")["input_ids"].tolist() == [[62, 5, 6, 7]]
    assert dict(processor.image_processor.size) == {"height": 32, "width": 32}


def test_a_vocabulary_of_another_model_is_refused(folder, tmp_path):
    other = tmp_path / "other.txt"
    for words, message in ((WORDS[:-1], "has 63 words"), (["hello", "world"], "lacks .CLS.")):
        other.write_text("\n".join(words))
        with pytest.raises(ValueError, match=message):
            convert(folder / "captioner.pth", config=HEADS, vocab=other)


def test_the_command_in_a_fresh_interpreter(folder, model):
    script = str(ROOT / "conversion" / "convert_blip.py")
    done = subprocess.run(
        [sys.executable, script, *arguments(folder, "--verify", "--image-size", "48")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "left out 1 keys: 0, 1, 2, ...: counted when needed" in done.stdout
    out = folder.parent / "out"
    converted = hfvlm.BlipForConditionalGeneration.from_pretrained(out)
    assert torch.equal(converted.lm_head.dense.weight, model.lm_head.dense.weight)
    assert converted.config.vision_config.image_size == 48
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out", "release"]


def test_generation_settings_go_with_the_model_both_ways(model, tmp_path, capsys):
    ours = type(model)(model.config)
    ours.generation_config.update(num_beams=3, max_new_tokens=7, repetition_penalty=1.5)
    ours.save_pretrained(tmp_path / "ours")
    there = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs"), "--to", "transformers"]
    assert main(there) == 0
    assert "release_beam_search" not in capsys.readouterr().out
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    for source in (tmp_path / "theirs", theirs):
        back = convert(source).generation_config
        assert (back.num_beams, back.max_new_tokens, back.repetition_penalty) == (3, 7, 1.5)
        own = ours.generation_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert getattr(back, name) == getattr(own, name)
    assert to_transformers(ours).text_decoder.generation_config.num_beams == 3


@pytest.mark.parametrize("head", ["VisualReasoning", "VisualEntailment", ""])
def test_a_head_that_transformers_lacks_is_refused(head, tmp_path, capsys):
    model = tiny_model("blip", f"AutoModelFor{head}" if head else "AutoModel")
    model.save_pretrained(tmp_path / "ours")
    there = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs"), "--to", "transformers"]
    assert main(there) == 1
    assert f"transformers has no class for {type(model).__name__}: convert a captioner" in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_a_pretraining_folder_gives_its_captioner(tmp_path):
    model = tiny_model("blip", "AutoModelForPreTraining")
    model.save_pretrained(tmp_path / "ours")
    there = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs"), "--to", "transformers"]
    assert main(there) == 0
    captioner = hfvlm.BlipForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert_same_weights(convert(tmp_path / "theirs", config=HEADS), captioner)


def test_the_command_writes_transformers_format_from_a_release(folder, capsys):
    assert main(arguments(folder, "--to", "transformers")) == 0
    config = json.loads((folder.parent / "out" / "config.json").read_text())
    assert config["model_type"] == "blip" and config["text_config"]["sep_token_id"] == 3
    assert "release_beam_search is not carried over" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(arguments(folder, "--to", "transformers", "--part", "vision"))


@pytest.mark.parametrize(
    "wrong", ["missing key", "variant", "no file", "empty file", "config", "image size", "output", "disk"]
)
def test_the_command_fails_in_one_line_and_leaves_nothing(wrong, folder, release, monkeypatch, capsys):
    more, names = [], ["release"]
    if wrong == "missing key":
        del release["visual_encoder.cls_token"]
        torch.save(release, folder / "captioner.pth")
    elif wrong == "variant":
        more = ["--variant", "huge"]
    elif wrong == "image size":
        more = ["--image-size", "50"]
    elif wrong == "no file":
        (folder / "captioner.pth").unlink()
    elif wrong == "empty file":
        (folder / "captioner.pth").write_bytes(b"")
    elif wrong == "config":
        (folder / "fields.json").write_text("{not json")
    elif wrong == "output":
        (folder.parent / "out").mkdir()
        (folder.parent / "out" / "mine.txt").write_text("keep")
        names = ["out", "release"]
    else:

        def save(self, path, **kwargs):
            (Path(path) / "half").write_text("written")
            raise OSError("no space left on device")

        monkeypatch.setattr(hfvlm.BlipForConditionalGeneration, "save_pretrained", save)
    assert main(arguments(folder, *more)) == 1
    said = capsys.readouterr().err
    assert said.startswith("convert_blip: error: ") and "Traceback" not in said
    assert sorted(path.name for path in folder.parent.iterdir()) == names
    if wrong == "output":
        assert [path.name for path in (folder.parent / "out").iterdir()] == ["mine.txt"]
