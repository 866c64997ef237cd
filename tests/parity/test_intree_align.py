"""transformers' own ALIGN with the same weights: the same numbers, and back again bit for bit."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import tiny_tokenizer
from transformers import EfficientNetImageProcessorPil

from hfvlm import AlignModel, AlignProcessor, AlignTextModel, AlignVisionModel
from hfvlm.conversion.align_rules import in_tree_rules
from hfvlm.conversion.convert_align import convert, main, to_transformers
from hfvlm.conversion.rules import apply
from hfvlm.models.align.processing_align import image_processor_for


WORDS = 64
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
SMALL = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": 64}
#: image towers, and the width of what they give
TOWERS = {
    "seven stages": (SMALL, 80),
    "odd sizes": ({**SMALL, "image_size": 69}, 80),
    "symmetric padding": ({**SMALL, "image_size": 67, "depthwise_padding": [1, 2, 5]}, 80),
    "largest": ({**SMALL, "pooling_type": "max", "num_channels": 1}, 80),
    "stages of its own": (
        {
            "width_coefficient": 0.5,
            "depth_coefficient": 1.1,
            "image_size": 33,
            "depth_divisor": 4,
            "kernel_sizes": [3, 5, 3],
            "in_channels": [32, 16, 24],
            "out_channels": [16, 24, 30],
            "strides": [1, 2, 1],
            "num_block_repeats": [1, 2, 1],
            "expand_ratios": [1, 6, 4],
            "squeeze_expansion_ratio": 0.5,
            "hidden_act": "gelu",
            "batch_norm_eps": 1e-2,
            "hidden_dim": 64,
        },
        16,
    ),
}


def random_model(vision: dict, width: int) -> transformers.AlignModel:
    torch.manual_seed(0)
    config = transformers.AlignConfig(
        vision_config=vision, text_config=TEXT, projection_dim=width, temperature_init_value=0.07
    )
    model = transformers.AlignModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 4:
                parameter.normal_(0, 2 * parameter[0].numel() ** -0.5)
            elif parameter.ndim:
                scale = name.endswith("weight") and parameter.ndim == 1
                parameter.normal_(1.0 if scale else 0.0, 0.15)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module", params=TOWERS)
def theirs(request):
    return random_model(*TOWERS[request.param])


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs, verify=True)


@pytest.fixture(scope="module")
def plain():
    return random_model(*TOWERS["seven stages"])


def batch_for(model: transformers.AlignModel, images: int = 3) -> dict[str, torch.Tensor]:
    vision, generator = model.config.vision_config, torch.Generator().manual_seed(1)
    size = (images, vision.num_channels, vision.image_size, vision.image_size)
    ids = torch.randint(6, WORDS, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"pixel_values": torch.randn(size, generator=generator), "input_ids": ids, "attention_mask": mask}


def equal_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one
    )


@torch.no_grad()
def test_every_number_of_a_forward_pass(theirs, ours):
    everything = {"return_loss": True, "output_hidden_states": True, "output_attentions": True}
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    batch = batch_for(theirs)
    expected, got = theirs(**batch, **everything), ours(**batch, **everything)
    assert expected.logits_per_image.std() > 0.1, "all alike would prove nothing"
    for name in ("loss", "logits_per_image", "logits_per_text", "image_embeds"):
        torch.testing.assert_close(got[name], expected[name], **TOLERANCE, msg=name)
    torch.testing.assert_close(got.text_embeds, torch.nn.functional.normalize(expected.text_embeds), **TOLERANCE)

    images, their_images = got.vision_model_output, expected.vision_model_output
    tokens = their_images.last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(images.last_hidden_state, tokens, **TOLERANCE)
    torch.testing.assert_close(images.pooler_output, their_images.pooler_output, **TOLERANCE)
    assert len(images.hidden_states) == len(ours.vision_model.blocks) + 1
    for mine, other in zip(images.hidden_states, their_images.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE)

    real = batch["attention_mask"].bool()  # what padding gives differs: theirs numbers it, ours does not
    texts, their_texts = got.text_model_output, expected.text_model_output
    for mine, other in zip(texts.hidden_states, their_texts.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], **TOLERANCE)
    for mine, other in zip(texts.attentions, their_texts.attentions, strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], other.transpose(1, 2)[real], **TOLERANCE)


@torch.no_grad()
def test_features_of_one_side(theirs, ours):
    batch = batch_for(theirs)
    pixels, text = batch.pop("pixel_values"), batch
    got, expected = ours.get_image_features(pixels), theirs.get_image_features(pixels)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, **TOLERANCE)
    got, expected = ours.get_text_features(**text), theirs.get_text_features(**text)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, **TOLERANCE)


def test_gradients(plain):
    ours, batch = convert(plain), batch_for(plain)
    gradients = []
    for model in (plain, ours):
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    expected = apply(in_tree_rules(pooler=True), gradients[0]).tensors
    assert gradients[1].keys() == expected.keys() == dict(ours.named_parameters()).keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE, msg=name)


def test_round_trip_keeps_every_bit(theirs, ours):
    back = to_transformers(ours)
    assert equal_weights(back, theirs)
    again = convert(back)
    assert equal_weights(again, ours)
    assert again.config.to_dict() == ours.config.to_dict()
    there, here = back.config.to_dict(), theirs.config.to_dict()
    for sides in (there, here):
        sides["vision_config"].pop("hidden_dim")  # the side of a pooling window that is wider than any map
        sides["vision_config"]["hidden_act"] = sides["vision_config"]["hidden_act"].replace("swish", "silu")
        sides.pop("architectures", None)
    assert there == here


def test_a_model_of_ours_goes_there_and_back(plain):
    ours = convert(plain)
    fresh = AlignModel(type(ours.config)(**{**ours.config.to_dict(), "text_pooler": False})).eval()
    fresh.load_state_dict({key: value for key, value in ours.state_dict().items() if "pooler" not in key})
    there = to_transformers(fresh)
    assert not there.text_model.pooler.dense.weight.any()
    batch = batch_for(plain)
    torch.testing.assert_close(there(**batch).logits_per_image, plain(**batch).logits_per_image)
    back = convert(there).state_dict()
    assert all(torch.equal(back[key], value) for key, value in fresh.state_dict().items())


def test_round_trip_keeps_the_dtype(plain):
    half = convert(plain).to(torch.bfloat16)
    again = convert(to_transformers(half))
    assert again.dtype == torch.bfloat16 and equal_weights(again, half)


def test_folders_convert_both_ways_on_the_command_line(plain, tmp_path):
    """A sharded folder with a processor, as the Hub has them, to hfvlm and back; the towers alone read it, too."""
    source = tmp_path / "in-tree"
    plain.save_pretrained(source, max_shard_size="100KB")
    assert (source / "model.safetensors.index.json").exists()
    their_processor = transformers.AlignProcessor(image_processor_for(64), tiny_tokenizer(WORDS))
    their_processor.save_pretrained(source)
    assert main(["--checkpoint", str(source), "--output", str(tmp_path / "ours"), "--verify"]) == 0
    ours = AlignModel.from_pretrained(tmp_path / "ours")
    assert equal_weights(ours, convert(plain))

    processor = AlignProcessor.from_pretrained(tmp_path / "ours")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    inputs = processor(images=image, text=["a dog runs on the beach"])
    batch = batch_for(plain, images=1)
    assert inputs["pixel_values"].shape == batch["pixel_values"].shape
    expected = plain(**inputs)
    for cls, name in ((AlignVisionModel, "image_embeds"), (AlignTextModel, "text_embeds")):
        alone, told = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        side = {key: value for key, value in inputs.items() if key == "pixel_values" or name == "text_embeds"}
        side = side if name == "image_embeds" else {key: value for key, value in side.items() if key != "pixel_values"}
        got = alone.eval()(**side)
        torch.testing.assert_close(got[name], torch.nn.functional.normalize(expected[name], dim=-1), **TOLERANCE)

    arguments = ["--checkpoint", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", "transformers"]
    assert main(arguments) == 0
    assert equal_weights(transformers.AlignModel.from_pretrained(tmp_path / "back"), plain)
    back = transformers.AlignProcessor.from_pretrained(tmp_path / "back")
    assert back.image_processor.to_dict() == their_processor.image_processor.to_dict()
    assert back.tokenizer.get_vocab() == their_processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "settings", [image_processor_for(289), EfficientNetImageProcessorPil()], ids=["published", "stock"]
)
@pytest.mark.parametrize(("size", "mode"), [((50, 37), "RGB"), ((640, 427), "RGB"), ((31, 90), "L")])
def test_inputs_equal_theirs(settings, size, mode):
    """Pixels bit for bit, and the same ids padded to the same length."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).convert("RGB")
    tokenizer = tiny_tokenizer(WORDS)
    tokenizer.model_max_length = 512
    texts = ["a dog runs on the beach", "the cat", "unknownword"]
    expected = transformers.AlignProcessor(settings, tokenizer)(images=image, text=texts, return_tensors="pt")
    got = AlignProcessor(settings, tokenizer)(images=image, text=texts)
    assert got["input_ids"].shape == (3, 64)
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(got[name], expected[name]), name
        assert got[name].dtype == expected[name].dtype


def test_pixels_equal_the_published_transform():
    """Bilinear to 346, the middle 289, from [0, 255] to [-1, 1]."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    resized = image.resize((346, 346), Image.Resampling.BILINEAR)
    left = (346 - 289) // 2
    middle = np.asarray(resized.crop((left, left, left + 289, left + 289)), dtype=np.float32)
    got = AlignProcessor(image_processor_for(), tiny_tokenizer())(images=image)["pixel_values"][0]
    torch.testing.assert_close(got, torch.from_numpy(middle.transpose(2, 0, 1)) / 127.5 - 1, atol=1e-6, rtol=0)
