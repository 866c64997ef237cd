"""The image-to-text pipeline: every input, every option, batches that change nothing."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny import tiny_model, tiny_processor
from torch.utils.data import Dataset, IterableDataset
from transformers.pipelines.pt_utils import KeyDataset

import hfvlm
from hfvlm.images import ImageError
from hfvlm.pipelines.image_to_text import ImageToTextPipeline


AUTO = "AutoModelForImageTextToText"


@pytest.fixture(scope="module")
def model():
    return tiny_model("hfvlm_blip", AUTO)


@pytest.fixture(scope="module")
def pipe(model):
    return ImageToTextPipeline(model, tiny_processor("hfvlm_blip"), device="cpu", max_new_tokens=6)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20 + 9 * i, 50 - 7 * i, 3), dtype=np.uint8)) for i in range(5)]


@pytest.fixture(scope="module")
def captions(pipe, images) -> list[list[dict[str, str]]]:
    return [pipe(image) for image in images]


class Rows:
    """What a `datasets` dataset is to us: rows by index, and no `Dataset` of torch."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class TorchRows(Rows, Dataset):
    pass


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from self.rows


def test_one_image(captions):
    assert [list(caption[0]) for caption in captions] == [["generated_text"]] * 5
    assert all(len(caption) == 1 for caption in captions)
    assert len({caption[0]["generated_text"] for caption in captions}) > 2  # they look at the image


def test_one_image_in_every_form(pipe, images, captions, tmp_path):
    path = tmp_path / "photo.png"
    images[0].save(path)
    data = path.read_bytes()
    for source in (path, str(path), data, io.BytesIO(data), Image.open(path), {"image": path, "id": 3}):
        assert pipe(source) == captions[0]
    assert pipe(images=images[0]) == captions[0]
    assert pipe(inputs=images[0]) == captions[0]  # the name that transformers' pipelines take it by


def test_many_images_in_every_form(pipe, images, captions):
    rows = [{"image": image, "label": i} for i, image in enumerate(images)]
    for many in (images, tuple(images), rows):
        assert pipe(many) == captions
    lazy = [
        (image for image in images),
        iter(images),
        map(Image.Image.copy, images),
        Rows(images),
        Rows(rows),
        TorchRows(rows),
        KeyDataset(TorchRows(rows), "image"),
        Stream(images),
    ]
    for many in lazy:
        result = pipe(many, batch_size=2)
        assert not isinstance(result, list), many
        assert list(result) == captions, many


def test_nothing_to_caption(pipe):
    assert pipe([]) == []
    assert list(pipe(image for image in ())) == []
    assert list(pipe(TorchRows([]))) == []
    with pytest.raises(ValueError, match="pass images"):
        pipe()


def test_generators_are_read_as_they_are_used(pipe, images):
    read = []

    def source():
        for i, image in enumerate(images):
            read.append(i)
            yield image

    results = iter(pipe(source(), batch_size=2))
    next(results)
    assert len(read) < 5
    assert len(list(results)) == 4


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
@pytest.mark.parametrize("prompt", [None, "a big dog"])
def test_batch_equals_single(pipe, images, batch_size, prompt):
    assert pipe(images, prompt=prompt, batch_size=batch_size) == [pipe(image, prompt=prompt) for image in images]


def test_prompts_of_different_length_in_a_batch(pipe, images):
    prompts = ["a", None, "two dogs on the beach", "a big dog", None]
    rows = [{"image": image, "prompt": prompt} for image, prompt in zip(images, prompts)]
    single = [pipe(image, prompt=prompt) for image, prompt in zip(images, prompts)]
    assert pipe(rows, batch_size=5) == single
    assert pipe(rows, batch_size=2) == single


def test_callers_prompt_is_kept(pipe, images, captions):
    [result] = pipe(images[0], prompt="a big dog")
    assert result["generated_text"].startswith("a big dog ")
    assert result != captions[0][0]


def test_processors_prompt_is_cut_off(model, pipe, images):
    own = ImageToTextPipeline(model, tiny_processor("hfvlm_blip", prompt="a big dog"), device="cpu", max_new_tokens=6)
    given = pipe(images, prompt="a big dog")
    cut = [
        [{"generated_text": row["generated_text"].removeprefix("a big dog").strip()} for row in rows] for rows in given
    ]
    assert own(images) == cut
    assert own(images, batch_size=3) == cut
    assert own(images[0], prompt="the cat")[0]["generated_text"].startswith("the cat")
    mixed = [{"image": images[0]}, {"image": images[1], "prompt": "the cat"}]
    assert own(mixed, batch_size=2) == [own(images[0]), own(images[1], prompt="the cat")]


def test_several_captions_an_image(pipe, images):
    options = {"num_beams": 3, "num_return_sequences": 3}
    single = [pipe(image, generate_kwargs=options) for image in images]
    assert [len(captions) for captions in single] == [3] * 5
    assert pipe(images, batch_size=4, generate_kwargs=options) == single
    assert pipe(images[0], generate_kwargs={**options, "return_dict_in_generate": True}) == single[0]


def test_generation_options(pipe, model, images):
    long = pipe(images, max_new_tokens=12, generate_kwargs={"min_new_tokens": 12})
    short = pipe(images, max_new_tokens=2)
    assert all(len(a[0]["generated_text"]) > len(b[0]["generated_text"]) for a, b in zip(long, short))
    once = ImageToTextPipeline(
        model, tiny_processor("hfvlm_blip"), device="cpu", max_new_tokens=6, generate_kwargs={"num_beams": 3}
    )
    assert once(images) == pipe(images, generate_kwargs={"num_beams": 3})
    with pytest.raises(ValueError, match="max_new_tokens is given twice"):
        pipe(images, max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})


def test_bf16(images):
    half = ImageToTextPipeline(
        tiny_model("hfvlm_blip", AUTO).to(torch.bfloat16), tiny_processor("hfvlm_blip"), device="cpu", max_new_tokens=6
    )
    assert half(images, batch_size=5) == [half(image) for image in images]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_is_named(pipe, images, tmp_path, num_workers):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"broken\.jpg: is not an image"):
        pipe([images[0], str(broken), images[1]], batch_size=2, num_workers=num_workers)


@pytest.mark.parametrize("bad", [3, [[1, 2]], np.zeros((4, 4, 3)), {"picture": 1}, [None]])
def test_what_is_no_image(pipe, bad):
    with pytest.raises(ValueError, match="image"):
        pipe(bad)


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "empty prompt"), ("  ", "empty prompt"), ("dog " * 60, "60 tokens.*shorten")]
)
def test_bad_prompts(pipe, images, prompt, message):
    with pytest.raises(ValueError, match=message):
        pipe(images[0], prompt=prompt)
    with pytest.raises(ValueError, match=message):
        pipe([{"image": images[0], "prompt": prompt}])


def test_a_list_of_prompts_is_refused(pipe, images):
    with pytest.raises(TypeError, match="one an image pass rows"):
        pipe(images, prompt=["a dog", "a cat"])


def test_needs_a_processor(model):
    with pytest.raises(ValueError, match="processor="):
        ImageToTextPipeline(model)


def test_constructed_by_transformers(model, images, captions, tmp_path):
    """As `transformers.pipeline` does with a folder's `custom_pipelines`."""
    model.save_pretrained(tmp_path)
    tiny_processor("hfvlm_blip").save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.custom_pipelines = {"image-to-text": {"impl": "image_to_text.ImageToTextPipeline", "pt": [AUTO]}}
    pipe = transformers.pipeline(
        "image-to-text", str(tmp_path), config=config, pipeline_class=ImageToTextPipeline, device="cpu"
    )
    assert pipe(images, batch_size=5, max_new_tokens=6) == captions


def test_save_and_load(model, images, tmp_path):
    pipe = ImageToTextPipeline(model, tiny_processor("hfvlm_blip", prompt="a big dog"), device="cpu")
    pipe.save_pretrained(tmp_path)
    loaded = hfvlm.pipeline("image-to-text", tmp_path, device="cpu")
    assert loaded.processor.prompt == "a big dog"
    assert loaded(images) == pipe(images)
