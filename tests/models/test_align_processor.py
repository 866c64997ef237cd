"""ALIGN's processor: texts to 64 tokens, images as the published weights want them; saved, loaded, refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_tokenizer
from transformers import AutoProcessor, EfficientNetImageProcessorPil

from hfvlm import AlignProcessor
from hfvlm.models.align.processing_align import image_processor_for


@pytest.fixture
def processor() -> AlignProcessor:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 512  # as BERT's
    return AlignProcessor(image_processor_for(64), tokenizer)


def picture(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_texts_are_padded_and_cut_to_64_tokens(processor):
    texts = ["a dog", "dog " * 100]
    inputs = processor(text=texts)
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape == (2, 64)
    assert inputs["attention_mask"].sum(-1).tolist() == [4, 64]
    assert inputs["input_ids"][1, -1] == processor.tokenizer.sep_token_id
    assert processor(text="a dog", padding=True)["input_ids"].shape == (1, 4)
    assert processor(text=texts, max_length=10)["input_ids"].shape == (2, 10)


def test_the_tokenizers_limit_is_the_models(processor):
    processor.tokenizer.model_max_length = 40
    assert processor(text="a dog")["input_ids"].shape == (1, 40)


def test_images_are_the_middle_between_minus_one_and_one(processor):
    inputs = processor(images=[picture(), picture(31, 200)])
    pixels = inputs["pixel_values"]
    assert pixels.shape == (2, 3, 64, 64) and pixels.dtype == torch.float32
    assert -1 <= pixels.min() < -0.2 < 0.2 < pixels.max() <= 1
    white = processor(images=Image.new("RGB", (10, 10), "white"))["pixel_values"]
    torch.testing.assert_close(white, torch.ones(1, 3, 64, 64))


def test_the_published_transform():
    settings = image_processor_for()
    assert (settings.size.height, settings.crop_size.height) == (346, 289)
    assert settings.rescale_offset and not settings.do_normalize and not settings.include_top


def test_it_survives_being_saved(processor, tmp_path):
    processor.max_length = 20
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AlignProcessor and type(loaded.image_processor) is EfficientNetImageProcessorPil
    both = {"images": picture(), "text": ["a dog", "the cat sits"]}
    one, other = processor(**both), loaded(**both)
    assert one.keys() == other.keys() and one["input_ids"].shape == (2, 20)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "pass images, text, or both"),
        ({"text": []}, ValueError, "text is an empty list"),
        ({"text": "dog " * 100, "truncation": False}, ValueError, "text 0 has 102 tokens .* 64 are allowed"),
        ({"text": ["a", "a dog"], "padding": False}, ValueError, "padding=False takes texts of one length"),
        ({"text": "a dog", "padding": "widest"}, ValueError, "padding must be"),
        ({"text": [3]}, TypeError, "text must be a string or a list of strings, got int"),
        ({"text": "a dog", "return_token_type_ids": True}, TypeError, "no return_token_type_ids"),
    ],
)
def test_bad_input_is_refused(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**arguments)
