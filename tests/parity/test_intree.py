"""transformers' own BLIP with the same weights: the same numbers, the same captions, and back again bit for bit."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from transformers import BlipImageProcessorPil

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipProcessor
from hfvlm.conversion.convert_blip import convert, convert_vision, main, to_transformers


END, START, WORDS = 3, 5, 64
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    towers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BlipConfig(
        vision_config={"hidden_size": 40, "intermediate_size": 80, "image_size": 32, "patch_size": 8, **towers},
        text_config={
            "vocab_size": WORDS,
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": 40,
            "bos_token_id": START,
            "sep_token_id": END,
            "label_smoothing": 0.1,
            **towers,
        },
    )
    model = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.15)
        model.text_decoder.cls.predictions.bias[END] += 2.0  # so that some texts end early
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


def test_logits_and_loss(theirs, ours, pixels):
    ids = torch.randint(6, WORDS, (3, 7), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = START
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    expected = theirs(pixels, **batch)
    got = ours(pixels, **batch, position_ids=torch.arange(7)[None])  # they number padding too
    torch.testing.assert_close(got.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(got.loss, expected.loss, **TOLERANCE)
    torch.testing.assert_close(got.encoder_last_hidden_state, expected.image_embeds, **TOLERANCE)


@pytest.mark.parametrize("prompt", [None, [9], [9, 11, 17]], ids=["no prompt", "one token", "three tokens"])
@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 1},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 2.0},
        {"num_beams": 3, "repetition_penalty": 1.5, "min_length": 6},
    ],
    ids=["greedy", "beams", "all beams", "penalty"],
)
def test_generates_the_same_ids(theirs, ours, pixels, prompt, search):
    expected_prompt = got_prompt = {}
    if prompt is not None:  # theirs overwrites the first token with the start token, and cuts the last
        expected_prompt = {"input_ids": torch.tensor([[2, *prompt, END]] * len(pixels))}
        got_prompt = {"input_ids": torch.tensor([[START, *prompt]] * len(pixels))}
    expected = theirs.generate(pixels, **expected_prompt, **search, max_length=12)
    got = ours.generate(pixels, **got_prompt, **search, max_length=12)
    assert got.tolist() == expected.tolist()


def test_round_trip_keeps_every_bit(theirs, ours):
    back = to_transformers(ours)
    assert equal_weights(back, theirs)
    again = convert(back)
    assert equal_weights(again, ours)
    assert again.config.to_dict() == ours.config.to_dict()


def test_round_trip_keeps_the_dtype(ours):
    half = BlipForConditionalGeneration(ours.config).to(torch.bfloat16)
    again = convert(to_transformers(half))
    assert again.dtype == torch.bfloat16 and equal_weights(again, half)


def test_another_image_size(theirs, pixels):
    """Resized at conversion, the table gives what theirs interpolates on the fly."""
    larger = torch.nn.functional.interpolate(pixels, size=(48, 48), mode="bilinear")
    expected = theirs.vision_model(larger, interpolate_pos_encoding=True).last_hidden_state
    got = convert(theirs, image_size=48).get_image_features(larger).last_hidden_state
    torch.testing.assert_close(got, expected, **TOLERANCE)
    torch.testing.assert_close(convert_vision(theirs, image_size=48)(larger).last_hidden_state, got)


def test_does_not_share_memory(theirs):
    model = convert(theirs)
    with torch.no_grad():
        model.vision_model.cls_token.add_(1)
    assert not torch.equal(model.vision_model.cls_token, theirs.vision_model.embeddings.class_embedding)


def test_folders_convert_both_ways_on_the_command_line(theirs, ours, tmp_path):
    """A sharded folder with a processor, as the Hub has them, to hfvlm and back."""
    tokenizer = tiny_tokenizer(WORDS)
    tokenizer.bos_token = None  # theirs has no start token of its own
    source = tmp_path / "in-tree"
    theirs.save_pretrained(source, max_shard_size="200KB")
    assert (source / "model.safetensors.index.json").exists()
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3])
    transformers.BlipProcessor(image_processor, tokenizer).save_pretrained(source)

    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    assert equal_weights(BlipForConditionalGeneration.from_pretrained(tmp_path / "ours"), ours)
    processor = BlipProcessor.from_pretrained(tmp_path / "ours")
    assert processor.tokenizer.bos_token_id == START
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]

    arguments = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(arguments) == 0
    assert equal_weights(transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "back"), theirs)
    back = transformers.BlipProcessor.from_pretrained(tmp_path / "back")
    text = "a dog runs on the beach"
    assert back(text=text)["input_ids"] == transformers.BlipProcessor.from_pretrained(source)(text=text)["input_ids"]


def test_older_folders_store_the_tied_weights_too(theirs, ours, tmp_path):
    theirs.config.save_pretrained(tmp_path)
    state = {**theirs.state_dict(), "text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert equal_weights(convert(tmp_path), ours)


def test_what_transformers_blip_cannot_hold():
    config = BlipConfig.variant("tiny", vision_config={"num_channels": 1})
    with pytest.raises(ValueError, match="num_channels"):
        to_transformers(BlipForConditionalGeneration(config))
    tower = {"model_type": "hfvlm_efficientnet_tower", "lite": True, "hidden_size": 40}
    text = BlipConfig.variant("tiny").text_config.to_dict()
    with pytest.raises(ValueError, match="hfvlm_efficientnet_tower"):
        to_transformers(BlipForConditionalGeneration(BlipConfig(vision_config=tower, text_config=text)))


@pytest.mark.parametrize("size, mode", [((50, 37), "RGB"), ((384, 384), "RGB"), ((640, 427), "RGB"), ((31, 90), "L")])
def test_pixels_equal_the_original_transform(size, mode):
    """PIL's bicubic resize to the square, a 255th, CLIP's mean and deviation: what the original evaluates with."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).convert("RGB")
    squared = np.asarray(image.resize((384, 384), Image.Resampling.BICUBIC), dtype=np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    expected = torch.from_numpy(((squared - mean) / deviation).transpose(2, 0, 1))
    processor = BlipProcessor(BlipImageProcessorPil(), tiny_tokenizer())
    got = processor(images=image)["pixel_values"][0]
    assert torch.equal(got, expected), (got - expected).abs().max()


def test_saved_weights_have_no_copies(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    assert "lm_head.decoder.weight" not in load_file(tmp_path / "model.safetensors")
