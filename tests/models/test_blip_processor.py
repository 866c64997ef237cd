"""BLIP's processor: prompts, captions to learn, limits, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_processor


DEC, SEP, PAD, UNK = 5, 3, 0, 1


@pytest.fixture
def processor():
    return tiny_processor("blip")


def image(size: tuple[int, int] = (50, 40)) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1, 1, 1), 60).convert("RGB")


def words(processor, text: str) -> list[int]:
    ids = processor.tokenizer.convert_tokens_to_ids(text.split())
    assert UNK not in ids
    return ids


def test_images_alone_give_pixels_alone(processor):
    batch = processor(images=[image(), image((9, 70))])
    assert set(batch) == {"pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(processor(images=image())["pixel_values"], batch["pixel_values"][:1])


def test_images_in_any_form(processor):
    expected = processor(images=image())["pixel_values"]
    array = np.asarray(image())
    for form in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), [image()]):
        torch.testing.assert_close(processor(images=form)["pixel_values"], expected)


def test_a_prompt_starts_with_the_decoders_token_and_does_not_end(processor):
    batch = processor(images=image(), text="a picture of")
    assert batch["input_ids"].tolist() == [[DEC, *words(processor, "a picture of")]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_prompts_are_padded_on_the_left(processor):
    batch = processor(images=[image()] * 2, text=["a picture of", "the dog"])
    the_dog = words(processor, "the dog")
    assert batch["input_ids"][1].tolist() == [PAD, DEC, *the_dog]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_one_prompt_serves_every_image_and_several_prompts_one(processor):
    assert processor(images=[image()] * 3, text="a dog")["input_ids"].shape == (3, 3)
    assert processor(images=[image()] * 2, text=["a dog", "a cat", "a man", "a boy"])["input_ids"].shape == (4, 3)
    assert processor(text=["a dog", "a cat"])["input_ids"].shape == (2, 3)


def test_the_processors_own_prompt():
    processor = tiny_processor("blip", prompt="a picture of")
    ids = processor(images=image())["input_ids"]
    assert torch.equal(ids, processor(images=image(), text="a picture of")["input_ids"])
    assert processor(images=image(), text="the dog")["input_ids"].shape == (1, 3)


def test_captions_are_learned_up_to_their_end(processor):
    batch = processor(images=[image()] * 2, suffix=["a dog runs", "a cat"])
    longer = [*words(processor, "a dog runs"), SEP]
    shorter = [*words(processor, "a cat"), SEP]
    assert batch["input_ids"].tolist() == [[DEC, *longer], [DEC, *shorter, PAD]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * 4 + [0]]
    assert batch["labels"].tolist() == [[-100, *longer], [-100, *shorter, -100]]


def test_the_prompt_is_not_learned():
    processor = tiny_processor("blip", prompt="a picture of")
    batch = processor(images=image(), suffix="a dog")
    prompt, caption = words(processor, "a picture of"), [*words(processor, "a dog"), SEP]
    assert batch["input_ids"].tolist() == [[DEC, *prompt, *caption]]
    assert batch["labels"].tolist() == [[-100] * 4 + caption]


def test_several_captions_an_image_stay_together(processor):
    groups = [["a dog", "the dog"], ["a cat", "the cat"]]
    batch = processor(images=[image()] * 2, suffix=groups)
    assert batch["pixel_values"].shape[0] == 2
    flat = [caption for group in groups for caption in group]
    assert batch["input_ids"].tolist() == [[DEC, *words(processor, caption), SEP] for caption in flat]


def test_each_image_can_have_its_prompt_for_all_its_captions(processor):
    groups = [["dog", "cat"], ["man", "boy"]]
    batch = processor(images=[image()] * 2, suffix=groups, text=["a red", "a blue"])
    starts = [processor.tokenizer.decode(row[1:3]) for row in batch["input_ids"]]
    assert starts == ["a red", "a red", "a blue", "a blue"]


@pytest.mark.parametrize("max_length", [None, 6])
def test_long_captions_are_cut_and_keep_their_end(processor, max_length):
    batch = processor(images=image(), suffix="dog " * 100, max_length=max_length)
    limit = max_length or processor.tokenizer.model_max_length
    ids = batch["input_ids"][0].tolist()
    assert ids == [DEC] + words(processor, "dog") * (limit - 2) + [SEP]
    assert batch["labels"][0].tolist() == [-100, *ids[1:]]


def test_max_length_never_exceeds_the_tokenizers(processor):
    ids = processor(images=image(), suffix="dog " * 100, max_length=1000)["input_ids"]
    assert ids.shape[1] == processor.tokenizer.model_max_length


@pytest.mark.parametrize("padding", [True, "longest"])
def test_the_usual_arguments_of_a_tokenizer_are_taken(processor, padding):
    plain = processor(images=[image()] * 2, text=["a dog", "the"])
    asked = processor(images=[image()] * 2, text=["a dog", "the"], padding=padding, truncation=True)
    assert plain.keys() == asked.keys() and all(torch.equal(plain[name], asked[name]) for name in plain)


def test_texts_are_padded_to_max_length(processor):
    prompt = processor(text="a dog", padding="max_length", max_length=6)
    assert prompt["input_ids"].tolist() == [[PAD] * 3 + [DEC, *words(processor, "a dog")]]
    caption = processor(suffix="a dog", padding="max_length", max_length=6)
    assert caption["labels"].tolist() == [[-100, *words(processor, "a dog"), SEP, -100, -100]]
    whole = processor(text="a dog", padding="max_length")["input_ids"]
    assert whole.shape[1] == processor.tokenizer.model_max_length


def test_without_padding_texts_are_of_one_length(processor):
    assert processor(text=["a dog", "the cat"], padding=False)["input_ids"].shape == (2, 3)
    for name in ("text", "suffix"):
        with pytest.raises(ValueError, match="padding=False takes texts of one length"):
            processor(**{name: ["a dog", "the"]}, padding=False)


def test_truncation_cuts_prompts_too_and_without_it_captions_are_refused(processor):
    ids = processor(text="dog " * 50, truncation=True, max_length=6)["input_ids"]
    assert ids.tolist() == [[DEC] + words(processor, "dog") * 4]  # with room for a token more
    assert processor(suffix="dog " * 4, truncation=False, max_length=6)["input_ids"].shape == (1, 6)
    with pytest.raises(ValueError, match="suffix makes 7 tokens, 6 are allowed"):
        processor(suffix="dog " * 5, truncation=False, max_length=6)
    with pytest.raises(ValueError, match="text has 7 tokens"):
        processor(text="dog " * 7, suffix="cat", truncation=True, max_length=8)


def test_decoding_leaves_special_tokens_out(processor):
    batch = processor(images=[image()] * 2, suffix=["a dog runs", "a cat"])
    assert processor.batch_decode(batch["input_ids"]) == ["a dog runs", "a cat"]
    assert processor.decode(batch["input_ids"][1]) == "a cat"
    assert processor.decode(batch["input_ids"][1], skip_special_tokens=False) == "[DEC] a cat [SEP] [PAD]"


def test_the_prompt_survives_saving(tmp_path):
    processor = tiny_processor("blip", prompt="a picture of")
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.prompt == "a picture of"
    ours, theirs = (p(images=image(), suffix="a dog") for p in (processor, loaded))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_arguments_of_the_image_processor_pass_through(processor):
    batch = processor(images=image(), size={"height": 64, "width": 48})
    assert batch["pixel_values"].shape == (1, 3, 64, 48)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "pass images, text or suffix"),
        ({"text": ""}, ValueError, "text is an empty prompt; leave it out"),
        ({"text": ["a dog", "  "]}, ValueError, "text is an empty prompt"),
        ({"text": 7}, TypeError, "text must be a string or a list of strings, got int"),
        ({"text": [7]}, TypeError, "text must be a string or a list of strings, got int"),
        ({"text": "a dog", "padding": "left"}, ValueError, "padding must be True, False, 'longest' or 'max_length'"),
        ({"text": "a dog", "truncation": "only_first"}, ValueError, "truncation must be None, True or False"),
        ({"text": "a dog", "images": 1, "padding_side": "left"}, TypeError, "BlipProcessor takes .*, no padding_side"),
        ({"text": "dog " * 50}, ValueError, r"text has 50 tokens, the prompt may have 38: shorten 'dog dog"),
        ({"text": "dog " * 7, "max_length": 8}, ValueError, "text has 7 tokens, the prompt may have 6"),
        ({"text": ["a dog"] * 3, "images": 2}, ValueError, "text has 3 prompts for 2 images"),
        ({"suffix": ["a dog"] * 3, "images": 2}, ValueError, "suffix has 3 captions for 2 images"),
        ({"suffix": [], "images": 2}, ValueError, "suffix has 0 captions for 2 images"),
        ({"suffix": [["a dog"], ["a", "b"]], "images": 2}, ValueError, "same number of captions for every image"),
        ({"suffix": [["a dog"]] * 3, "text": ["a", "the"]}, ValueError, "text has 2 prompts for 3 captions"),
    ],
)
def test_what_it_refuses(processor, inputs, error, message):
    if "images" in inputs:
        inputs = {**inputs, "images": [image()] * inputs["images"]}
    with pytest.raises(error, match=message):
        processor(**inputs)
