"""CLIP's converter as people use it, and what it says when a checkpoint is not what it should be."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, CLIPTokenizer

import hfvlm
from hfvlm.conversion import clip_processor, clip_rules, open_clip
from hfvlm.conversion.clip_processor import MERGES_FILE, byte_letters, read_merges
from hfvlm.conversion.convert_clip import convert, main, to_transformers
from hfvlm.conversion.rules import KeyMismatch, apply, invert


HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}
MERGES = ["t h", "th e</w>", "d o", "do g</w>", "c a", "ca t</w>"]
WORDS = 512 + len(MERGES) + 2
RESNET = {"model_type": "hfvlm_resnet_tower", "depths": (1, 2, 1, 1), "width": 4, "num_attention_heads": 4}
#: an open_clip description of the tiny model's sizes
DESCRIPTION = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 40, "head_width": 10, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 40, "vocab_size": WORDS, "width": 48, "heads": 4, "layers": 2, "mlp_ratio": 2.0},
}


def described(**parts) -> dict:
    """The description, with settings of its parts changed."""
    changed = {**DESCRIPTION, **{name: value for name, value in parts.items() if not isinstance(value, dict)}}
    return {**changed, **{name: {**DESCRIPTION[name], **v} for name, v in parts.items() if isinstance(v, dict)}}


def to_release(model: nn.Module, text: str = "") -> dict[str, torch.Tensor]:
    """The state dict that the original would have saved: projections as matrices, tables without a batch."""
    rules = invert(clip_rules.release_rules(model.config, text))
    state = apply(rules, model.state_dict()).tensors
    for name in ("visual.proj", f"{text}text_projection"):
        if f"{name}.weight" in state and f"{name}.bias" not in state:
            state[name] = state.pop(f"{name}.weight").t()
    for name in ("visual.positional_embedding", "visual.class_embedding"):
        if name in state:
            state[name] = state[name].squeeze()
    return {name: value.clone() for name, value in state.items()}


def tiny(**fields) -> nn.Module:
    text = {"vocab_size": WORDS, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, **fields.pop("text_config", {})}
    return tiny_model("hfvlm_clip", "AutoModel", text_config=text, **fields)


def resnet(**fields) -> nn.Module:
    vision = {**RESNET, "modified": True, "pooling": "attention", "image_size": 64, "output_dim": 32}
    return tiny(vision_config=vision, **fields)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def release(model):
    return to_release(model)


@pytest.fixture
def folder(release, tmp_path) -> Path:
    """A release's file, its merges, and the fields that its shapes do not tell."""
    folder = tmp_path / "release"
    folder.mkdir()
    torch.save(release, folder / "clip.pt")
    (folder / MERGES_FILE).write_bytes(gzip.compress("\n".join(["# merges", *MERGES, "un used"]).encode()))
    (folder / "fields.json").write_text(json.dumps(HEADS))
    return folder


def arguments(folder: Path, *more: str, config: str = "fields.json") -> list[str]:
    paths = {"checkpoint": folder / "clip.pt", "output": folder.parent / "out", "config": folder / config}
    paths["vocab"] = folder / MERGES_FILE
    return [*(str(part) for name, path in paths.items() for part in (f"--{name}", path)), *more]


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) and value.dtype == other[name].dtype, name


def assert_same_outputs(one: nn.Module, other: nn.Module) -> None:
    vision = one.config.vision_config
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size, generator=generator)
    ids = torch.randint(1, WORDS, (3, 9), generator=generator)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        torch.testing.assert_close(one(ids, pixels)[name], other(ids, pixels)[name])


def test_geometry_comes_from_the_shapes(model, release):
    converted = convert(release, config=HEADS)
    assert_same_weights(converted, model)
    assert_same_outputs(converted, model)
    assert not converted.training
    ours, theirs = converted.config, model.config
    for part, names in (
        ("vision_config", ("image_size", "patch_size", "pre_norm", "final_norm", "hidden_act")),
        ("text_config", ("vocab_size", "bos_token_id", "eos_token_id", "max_position_embeddings", "hidden_act")),
    ):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", *names):
            assert getattr(getattr(ours, part), name) == getattr(getattr(theirs, part), name), name
    assert ours.projection_dim == 32 and ours.vision_config.hidden_act == "quick_gelu"


def test_resnets(tmp_path):
    model = resnet()
    converted = convert(to_release(model), config=HEADS, output=tmp_path / "out", verify=True)
    assert_same_weights(converted, model)
    assert_same_outputs(converted, model)
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "out"), model)
    with pytest.raises(ValueError, match="hfvlm_resnet_tower"):
        to_transformers(converted)


def test_published_sizes_need_no_config():
    """Heads are 64 wide unless told."""
    config = hfvlm.ClipConfig(
        vision_config={"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32},
        text_config={"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 1, "vocab_size": 600},
    )
    converted = convert(to_release(hfvlm.ClipModel(config)))
    assert converted.config.vision_config.num_attention_heads == 2
    assert converted.config.text_config.num_attention_heads == 3


def test_heads_are_counted_as_the_original_counts_them():
    wide = {"hidden_size": 160, "num_attention_heads": 2}
    assert convert(to_release(tiny(vision_config=wide, text_config=wide))).config.text_config.num_attention_heads == 2


def test_heads_that_cannot_be_told_are_asked_for(release):
    with pytest.raises(ValueError, match="vision tower's heads cannot be told from its width 40"):
        convert(release)
    advice = "if this is open_clip's, give its model JSON as --config FILE; else give a --variant, or --config FILE"
    with pytest.raises(ValueError, match=f"text tower's heads.*: {advice} with .*num_attention_heads"):
        convert(release, config={"vision_config": {"num_attention_heads": 4}})


def test_both_precisions_become_the_wider(model, release):
    half = {name: value.half() if "mlp" in name else value for name, value in release.items()}
    assert convert(half, config=HEADS).dtype == torch.float32
    assert convert({name: value.half() for name, value in release.items()}, config=HEADS).dtype == torch.float16


class Archive(nn.Module):
    """As OpenAI's archives: the tensors by name, sizes as buffers, and a program."""

    def __init__(self, state: dict[str, torch.Tensor]):
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(last, value)
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(32))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.sum()


def test_archives(model, release, tmp_path):
    release["transformer.resblocks.0.attn_mask"] = torch.zeros(40, 40)
    mixed = {name: value.half() if "mlp" in name else value for name, value in release.items()}
    torch.jit.save(torch.jit.script(Archive(mixed)), tmp_path / "ViT.pt")
    converted = convert(tmp_path / "ViT.pt", config=HEADS)
    assert converted.dtype == torch.float32
    assert_same_weights(converted, convert({k: v for k, v in mixed.items() if "mask" not in k}, config=HEADS))


def test_another_image_size(model, folder):
    converted = convert(folder / "clip.pt", config=HEADS, image_size=48, output=folder.parent / "out")
    assert converted.vision_model.position_embedding.shape == (1, 37, 40)
    pixels = torch.randn(2, 3, 48, 48)
    expected = model(pixel_values=pixels, interpolate_pos_encoding=True).image_embeds
    torch.testing.assert_close(converted(pixel_values=pixels).image_embeds, expected, atol=1e-5, rtol=1e-4)
    again = convert(folder.parent / "out", image_size=32)  # an hfvlm folder is read, too
    assert again.config.vision_config.image_size == 32
    torch.testing.assert_close(again.text_model.state_dict(), model.text_model.state_dict())
    wide = convert(to_release(resnet()), config=HEADS, image_size=96)
    assert wide.vision_model.attention_pool.position_embedding.shape == (10, 128)
    with pytest.raises(ValueError, match=r"image_size \(50\) must be a multiple of patch_size \(8\)"):
        convert(folder / "clip.pt", config=HEADS, image_size=50)


def test_on_the_command_line(model, folder, capsys):
    assert main(arguments(folder, "--verify")) == 0
    said = capsys.readouterr().out
    assert "no tokenizer" not in said and "parameters" in said
    assert "verified: one forward pass, its outputs finite; a wrong activation, heads or pooling would pass" in said
    assert_same_weights(AutoModel.from_pretrained(folder.parent / "out"), model)
    processor = AutoProcessor.from_pretrained(folder.parent / "out")
    batch = processor(text=["the dog", "The  CAT!"])
    words = {word: i for i, word in enumerate(processor.tokenizer.convert_ids_to_tokens(range(WORDS)))}
    start, end = WORDS - 2, WORDS - 1
    assert batch["input_ids"].tolist() == [
        [start, words["the</w>"], words["dog</w>"], end, 0],
        [start, words["the</w>"], words["cat</w>"], words["!</w>"], end],
    ]
    assert processor.tokenizer.model_max_length == 40
    assert processor.image_processor.crop_size.height == processor.image_processor.size.shortest_edge == 32


def test_what_is_left_to_a_guess_is_said(folder, capsys, monkeypatch):
    monkeypatch.setattr(clip_processor, "WORDS", WORDS)
    (folder / MERGES_FILE).unlink()
    heads = {"hidden_size": 64, "num_attention_heads": 1}
    torch.save(to_release(tiny(vision_config=heads, text_config=heads)), folder / "clip.pt")
    arguments = ["--checkpoint", str(folder / "clip.pt"), "--output", str(folder.parent / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"no tokenizer written: texts need OpenAI's {MERGES_FILE}, in the folder clip/ of https://github" in said
    act = "hidden_act='quick_gelu', pooling="
    assert f"guessed, as OpenAI's: vision_config: num_attention_heads=1, {act}'cls'\n" in said
    assert f"guessed, as OpenAI's: text_config: num_attention_heads=1, {act}'argmax', causal=True\n" in said
    assert "if this is open_clip's, give its model JSON as --config FILE" in said and "verified" not in said


def test_only_what_the_config_names_is_no_guess(folder, capsys):
    """The heads alone leave the activation and the pooling guessed; open_clip's own description leaves nothing."""
    named = {"hidden_act": "gelu", "pooling": "cls", "num_attention_heads": 4}
    (folder / "more.json").write_text(json.dumps({**HEADS, "vision_config": named}))
    (folder / "ViT.json").write_text(json.dumps(DESCRIPTION))
    text = "text_config: hidden_act='quick_gelu', pooling='argmax', causal=True"
    for config, guesses in (
        ("fields.json", ["vision_config: hidden_act='quick_gelu', pooling='cls'", text]),
        ("more.json", [text]),
        ("ViT.json", []),
    ):
        assert main(arguments(folder, config=config)) == 0
        said = capsys.readouterr().out.splitlines()
        assert [line for line in said if "guessed" in line] == [f"guessed, as OpenAI's: {guess}" for guess in guesses]
        shutil.rmtree(folder.parent / "out")
    torch.save(to_release(resnet()), folder / "clip.pt")
    assert main(arguments(folder)) == 0
    assert "vision_config" not in capsys.readouterr().out  # the tensors tell how a ResNet pools


def test_images_need_no_vocabulary(folder, tmp_path):
    """Not in a folder that is converted again, nor in transformers' format."""
    convert(folder / "clip.pt", config=HEADS, output=tmp_path / "one")
    convert(tmp_path / "one", image_size=48, output=tmp_path / "two")
    back = ["--checkpoint", str(tmp_path / "two"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(back) == 0
    for name, side in (("one", 32), ("two", 48), ("back", 48)):
        images = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert images(torch.zeros(3, 60, 80), return_tensors="pt")["pixel_values"].shape == (1, 3, side, side)


def test_open_clips_description(model, folder):
    """As a mapping, as a file, and beside the weights; the activation is the exact GELU unless it says otherwise."""
    (folder / "ViT.json").write_text(json.dumps(DESCRIPTION))
    for config in (DESCRIPTION, folder / "ViT.json"):
        exact = convert(folder / "clip.pt", config=config)
        assert exact.config.vision_config.hidden_act == exact.config.text_config.hidden_act == "gelu"
        assert exact.config.vision_config.num_attention_heads == 4
        assert_same_weights(exact, model)
    images = {"mean": [0.5, 0.5, 0.4], "std": [0.3, 0.3, 0.2], "interpolation": "bilinear", "resize_mode": "squash"}
    beside = {"model_cfg": described(quick_gelu=True), "preprocess_cfg": images}
    (folder / open_clip.FILE).write_text(json.dumps(beside))
    quick = convert(folder / "clip.pt", image_size=48, vocab=folder / MERGES_FILE, output=folder.parent / "out")
    assert quick.config.vision_config.hidden_act == "quick_gelu"
    settings = AutoProcessor.from_pretrained(folder.parent / "out").image_processor
    assert (settings.size.height, settings.size.width, settings.do_center_crop) == (48, 48, False)
    assert (list(settings.image_mean), list(settings.image_std)) == (images["mean"], images["std"])
    assert settings.resample == 2
    # the caller's word goes before what lies there
    assert convert(folder / "clip.pt", config=DESCRIPTION).config.vision_config.hidden_act == "gelu"


def test_custom_text_models_with_a_bias(tmp_path):
    fields = {"text_projection_bias": True, "objective": "sigmoid", "logit_bias_init_value": -10.0}
    model = tiny(**fields, text_config={"causal": False, "pooling": "last"})
    release = {f"module.{name}": value for name, value in to_release(model, "text.").items()}
    assert release["module.text.text_projection.weight"].shape == (32, 48)
    torch.save({"epoch": 3, "name": "x", "state_dict": release, "optimizer": {}}, tmp_path / "epoch_3.pt")
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    description = described(init_logit_bias=-10.0, quick_gelu=True, text_cfg=text)
    converted = convert(tmp_path / "epoch_3.pt", config=description, output=tmp_path / "out", verify=True)
    assert_same_weights(converted, model)
    assert_same_outputs(converted, model)
    assert converted.config.objective == "sigmoid"


def test_merges_are_not_guessed_for_another_vocabulary(folder, capsys, monkeypatch):
    """Beside a checkpoint they are taken for the published vocabulary alone."""
    out = folder.parent / "out"
    convert(folder / "clip.pt", config=HEADS, output=out)
    assert not (out / "tokenizer.json").exists()
    shutil.rmtree(out)
    monkeypatch.setattr(clip_processor, "WORDS", WORDS)
    convert(folder / "clip.pt", config=HEADS, output=out)
    assert AutoProcessor.from_pretrained(out).tokenizer.vocab_size == WORDS


def test_a_stock_tokenizers_folder(folder, tmp_path):
    """Without a configuration, and with one that pads with a word, as laion's largest does: "!" stays that word."""
    numbers, merges = read_merges(folder / MERGES_FILE, WORDS)
    CLIPTokenizer(vocab=numbers, merges=merges).save_pretrained(tmp_path / "plain")
    CLIPTokenizer(vocab=numbers, merges=merges, pad_token="!").save_pretrained(tmp_path / "padded")
    (tmp_path / "plain" / "tokenizer_config.json").unlink()
    (tmp_path / "empty").mkdir()
    expected = [WORDS - 2, numbers["the</w>"], numbers["dog</w>"], numbers["!</w>"], WORDS - 1]
    for kind in ("plain", "padded"):
        convert(folder / "clip.pt", config=HEADS, vocab=tmp_path / kind, output=tmp_path / f"{kind} out")
        processor = AutoProcessor.from_pretrained(tmp_path / f"{kind} out")
        assert processor(text="The DOG!")["input_ids"].tolist() == [expected]
        assert processor.tokenizer.model_max_length == 40
    with pytest.raises(FileNotFoundError, match="has no tokenizer: expected tokenizer.json or vocab.json"):
        convert(folder / "clip.pt", config=HEADS, vocab=tmp_path / "empty")


def test_texts_of_another_tokenizer(folder, tmp_path, capsys):
    """CLIPA's: BERT's ids without separators; the processor says so in every folder made of it."""
    bert = {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}
    description = described(text_cfg={**bert, "no_causal_mask": True, "pool_type": "last"})
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    (folder / "CLIPA.json").write_text(json.dumps(description))
    assert main(arguments(folder, "--vocab", str(tmp_path / "bert"), config="CLIPA.json")) == 0
    convert(folder.parent / "out", image_size=48, output=tmp_path / "larger")
    for name in (folder.parent / "out", tmp_path / "larger"):
        processor = AutoProcessor.from_pretrained(name)
        words = processor.tokenizer.get_vocab()
        ids = processor(text="a dog &amp;amp;")["input_ids"].tolist()
        assert ids == [[words["[CLS]"], words["a"], words["dog"], words["[UNK]"], *[0] * 36]]
    assert processor.image_processor.crop_size.height == 48
    with pytest.raises(ValueError, match="no place for the processor's strip_sep_token=True"):
        clip_processor.in_tree_processor(processor)
    assert main(arguments(folder, "--output", str(tmp_path / "no"), config="CLIPA.json")) == 1
    assert "hf_tokenizer_name says that texts are not read by CLIP's merges" in capsys.readouterr().err
    convert(folder / "clip.pt", config=description, output=tmp_path / "alone")
    assert not (tmp_path / "alone" / "processor_config.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True, "clean": "lower"}},
        {"tokenizer_kwargs": {"strip_sep_token": True}},
    ],
    ids=["another cleaning", "no such tokenizer"],
)
def test_tokenizer_settings_that_cannot_be_kept_are_refused(text, release):
    with pytest.raises(ValueError, match="tokenizer_kwargs are .*: of these the processor has strip_sep_token alone"):
        convert(release, config=described(text_cfg=text))


def test_a_text_tower_that_sees_its_padding_gets_full_texts(folder):
    text = {"no_causal_mask": True, "pool_type": "last"}
    vocab = folder / MERGES_FILE
    convert(folder / "clip.pt", config=described(text_cfg=text), vocab=vocab, output=folder.parent / "out")
    processor = AutoProcessor.from_pretrained(folder.parent / "out")
    assert processor.pad_to_max
    assert processor(text="the dog")["input_ids"].shape == (1, 40)


@pytest.mark.parametrize(
    "cfg, field, value",
    [
        ({"pool_type": "avg"}, "final_norm", "tokens"),
        ({"pool_type": "avg"}, "pooling", "mean"),
        ({"pool_type": "avg", "final_ln_after_pool": True}, "final_norm", "pooled"),
        ({"no_ln_pre": True}, "pre_norm", False),
        ({"norm_kwargs": {"eps": 1e-6}}, "layer_norm_eps", 1e-6),
        ({"act_kwargs": {"approximate": "tanh"}}, "hidden_act", "gelu_pytorch_tanh"),
        ({"patch_dropout": 0.5}, "pooling", "cls"),
        ({"image_size": [32, 32]}, "image_size", 32),
    ],
)
def test_what_open_clips_vision_settings_mean(cfg, field, value):
    fields = open_clip.model_fields(described(vision_cfg=cfg))
    assert getattr(hfvlm.ClipConfig(**fields).vision_config, field) == value


@pytest.mark.parametrize(
    "part, named",
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16"}}, "vision_cfg sets timm_model_name"),
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg sets attentional_pool"),
        ({"vision_cfg": {"pool_type": "none"}}, "pool_type is 'none'; the towers here know tok, avg"),
        ({"vision_cfg": {"image_size": [32, 64]}}, "squares"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "text_cfg sets hf_model_name"),
        ({"text_cfg": {"proj_type": "none"}}, "proj_type is 'none'"),
        ({"multimodal_cfg": {"width": 8}, "text_cfg": {}}, "model sets multimodal_cfg"),
    ],
)
def test_open_clips_other_towers_are_refused(part, named, release):
    extra = {name: value for name, value in part.items() if name not in DESCRIPTION}
    description = {**described(**{k: v for k, v in part.items() if k in DESCRIPTION}), **extra}
    with pytest.raises(ValueError, match=named):
        convert(release, config=description)


def test_a_description_of_another_model_does_not_fit(release):
    with pytest.raises(KeyMismatch, match="resblocks.2"):
        convert(release, config=described(vision_cfg={"layers": 3}))


def test_missing_extra_and_wrongly_shaped_keys_are_each_listed(release):
    del release["visual.positional_embedding"], release["transformer.resblocks.1.attn.in_proj_bias"]
    release["visual.head.weight"] = torch.zeros(3)
    release["visual.transformer.resblocks.1.mlp.c_fc.weight"] = torch.zeros(80, 7)
    with pytest.raises(KeyMismatch) as caught:
        convert(release, config={**HEADS, "vision_config": {"num_attention_heads": 4, "image_size": 32}})
    for line in (
        "visual.positional_embedding",
        "transformer.resblocks.1.attn.in_proj_bias",
        "visual.head.weight",
        "visual.transformer.resblocks.1.mlp.c_fc.weight: is [80, 7], must be [80, 40]",
    ):
        assert line in str(caught.value)


def test_what_is_no_clip_is_said(release, model, tmp_path):
    with pytest.raises(ValueError, match="not a CLIP checkpoint: expected visual.conv1.weight"):
        convert({"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="need their config.json"):
        convert({"vision_model.embeddings.class_embedding": torch.zeros(2)})
    del release["visual.conv1.weight"]
    with pytest.raises(ValueError, match="not a CLIP checkpoint"):
        convert(release)
    with pytest.raises(ValueError, match="without its projection"):
        towers = {name: value for name, value in to_transformers(model).state_dict().items() if "proj" not in name}
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
        torch.save(towers, tmp_path / "pytorch_model.bin")
        convert(tmp_path)


def test_weights_that_are_not_finite_fail_the_check_and_write_nothing(release, tmp_path):
    release["ln_final.weight"][0] = torch.nan
    with pytest.raises(ValueError, match="text embeds are not finite"):
        convert(release, config=HEADS, verify=True, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_in_one_line_what_is_wrong(folder, capsys):
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    for more, named in (
        (arguments(folder, config="nowhere.json"), "nowhere.json"),
        (arguments(folder, config="broken.json"), "Expecting"),
        (arguments(folder, config="list.json"), "must hold a JSON object of fields, not list"),
        (arguments(folder, "--config", "{}"), "--config takes a JSON file, not JSON itself"),
        (arguments(folder, "--variant", "huge"), "unknown ClipConfig variant 'huge'"),
        (arguments(folder, "--vocab", str(folder / "nothing.txt")), "nothing.txt"),
        (arguments(folder, "--checkpoint", str(folder / "no.pt")), "no.pt does not exist"),
    ):
        assert main(more) == 1
        error = capsys.readouterr().err
        assert error.startswith("convert_clip: error: ") and named in error
        assert not (folder.parent / "out").exists()
    assert main(arguments(folder)) == 0
    assert main(arguments(folder)) == 1
    assert "not an empty folder" in capsys.readouterr().err
    out = folder.parent / "out"
    back = ["--checkpoint", str(out), "--output", str(folder.parent / "back"), "--to", "transformers"]
    assert main([*back, "--vocab", "x"]) == 1
    assert "leave --variant, --config, ... out" in capsys.readouterr().err


def test_merges(tmp_path):
    letters = byte_letters()
    assert len(set(letters)) == 256 and letters[0] == "!" and letters[ord("a") - ord("!")] == "a"
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(["# merges", *MERGES]))
    words, merges = read_merges(path, WORDS)
    assert list(words.values()) == list(range(WORDS)) and merges[1] == ("th", "e</w>")
    assert [word for word, i in words.items() if i >= WORDS - 3] == ["cat</w>", "<|startoftext|>", "<|endoftext|>"]
    assert len(read_merges(path, WORDS - 2)[1]) == len(MERGES) - 2
    for size, named in ((WORDS + 5, "takes 11 merges; .* has 6"), (300, "300 words, fewer than letters alone")):
        with pytest.raises(ValueError, match=named):
            read_merges(path, size)
    path.write_text("# merges\na b c")
    with pytest.raises(ValueError, match="each line must have two parts"):
        read_merges(path, WORDS)
    path.write_bytes(gzip.compress(b"x" * 500)[:-9])
    with pytest.raises(ValueError, match="is no list of merges"):
        read_merges(path, WORDS)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder):
    convert(folder / "clip.pt", config=HEADS, vocab=folder / MERGES_FILE, output=folder.parent / "out")
    smaller = to_release(tiny(text_config={"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63}))
    torch.save(smaller, folder.parent / "out" / "clip.pt")
    with pytest.raises(ValueError, match="has 520 words, the checkpoint 64"):
        convert(folder.parent / "out" / "clip.pt", config=HEADS)
