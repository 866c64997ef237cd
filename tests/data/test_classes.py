"""Batches of images, texts and classes."""

import pytest
from PIL import Image
from tiny import tiny_processor

from hfvlm.data.classes import ClassCollator


@pytest.mark.parametrize("architecture", ["albef", "blip"])
def test_a_batch_of_one_image_a_text_and_of_two(architecture):
    processor = tiny_processor(architecture)
    items = [{"image": Image.new("RGB", (9, 9)), "text": text, "label": i} for i, text in enumerate(("a dog", "a"))]
    batch = ClassCollator(processor, max_length=8)(items)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [0, 1] and (batch["input_ids"][:, 0] == processor.tokenizer.cls_token_id).all()
    white = Image.new("RGB", (9, 9), "white")
    batch = ClassCollator(processor)([{**item, "image_second": white} for item in items])
    assert batch["pixel_values_second"].shape == batch["pixel_values"].shape == (2, 3, 32, 32)
    assert (batch["pixel_values_second"] > batch["pixel_values"]).all()
