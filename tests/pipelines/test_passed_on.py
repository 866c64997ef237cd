"""Tasks that transformers' own pipelines serve, of hfvlm's models: whole models only, and the right tensor first."""

import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

from hfvlm import pipeline
from hfvlm.processing import VlmProcessor


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photo") / "a.png"
    Image.effect_noise((40, 36), 60).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    def make(auto: str) -> str:
        tiny_model("blip", auto).save_pretrained(tmp_path)
        tiny_processor("blip").save_pretrained(tmp_path)
        return str(tmp_path)

    return make


@pytest.mark.parametrize("task", ["zero-shot-image-classification", "image-feature-extraction"])
def test_a_folder_of_another_head_is_refused(folder, task):
    with pytest.raises(ValueError, match="weights of Blip.*it holds the weights of BlipForConditionalGeneration"):
        pipeline(task, model=folder("AutoModelForImageTextToText"), device="cpu")


def test_parts_are_read_from_the_folder_unless_they_are_given(folder, photo):
    name, task, labels = folder("AutoModelForPreTraining"), "zero-shot-image-classification", ["dog", "cat"]
    processor = tiny_processor("blip")
    expected = pipeline(task, model=name, device="cpu")(photo, candidate_labels=labels)
    for given in ({"tokenizer": processor.tokenizer}, {"image_processor": processor.image_processor}):
        assert pipeline(task, model=name, device="cpu", **given)(photo, candidate_labels=labels) == expected
    half = pipeline(task, model=name, device="cpu", torch_dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="device_map is given twice"):
        pipeline(task, model=name, device_map="cpu", model_kwargs={"device_map": "cpu"})


def test_a_captioner_serves_image_text_to_text(folder):
    pipe = pipeline("image-text-to-text", model=folder("AutoModelForImageTextToText"), device="cpu")
    assert type(pipe.model).__name__ == "BlipForConditionalGeneration" and pipe.processor is not None


def test_images_alone_need_no_words(tmp_path, photo):
    tiny_model("blip", "AutoModel").save_pretrained(tmp_path)
    tiny_processor("blip").image_processor.save_pretrained(tmp_path)
    assert pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")(photo)


def test_zero_shot_of_a_fusion_model(folder, photo):
    pipe = pipeline("zero-shot-image-classification", model=folder("AutoModelForPreTraining"), device="cpu")
    rows = pipe(photo, candidate_labels=["dog", "cat", "ball"])
    assert {row["label"] for row in rows} == {"dog", "cat", "ball"}
    assert sum(row["score"] for row in rows) == pytest.approx(1, abs=1e-4)


def test_features_are_the_tokens_or_the_vector(folder, photo):
    pipe = pipeline("image-feature-extraction", model=folder("AutoModel"), device="cpu")
    pixels = pipe.image_processor(Image.open(photo), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = pipe.model.get_image_features(pixels.to(pipe.model.dtype))
    for found, tensor in (
        (pipe(photo), expected.last_hidden_state),
        (pipe(photo, pool=True), expected.pooler_output),
    ):
        torch.testing.assert_close(torch.tensor(found), tensor.float(), rtol=1e-3, atol=1e-3)


def test_a_folder_without_words_is_refused(folder, tmp_path):
    name = folder("AutoModelForImageTextToText")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no vocabulary: its tokenizer.json"):
        pipeline("image-to-text", model=name)
    with pytest.raises(ValueError, match="has no vocabulary"):
        type(tiny_processor("blip")).from_pretrained(name)
    assert issubclass(type(tiny_processor("blip")), VlmProcessor)


def test_a_damaged_file_is_named(folder, tmp_path):
    name = folder("AutoModelForImageTextToText")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"its weights \(\*\.safetensors\) are damaged"):
        pipeline("image-to-text", model=name)


def test_matching_takes_its_text_as_answering_takes_its_question(folder, photo):
    pipe = pipeline("image-text-matching", model=folder("AutoModelForImageTextRetrieval"), device="cpu")
    rows = pipe(photo, "a dog")
    assert rows == pipe(image=photo, text="a dog") == pipe(photo, text=["a dog"])
    with pytest.raises(TypeError, match="text must be a string or a list of strings, got int"):
        pipe(photo, text=5)


def test_numbers_and_texts_of_a_search_are_checked(folder, photo):
    pipe = pipeline("image-text-retrieval", model=folder("AutoModelForImageTextRetrieval"), device="cpu")
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        pipe.index(texts=["a dog", " "])
    pipe.index(images=[photo])
    for options in ({"top_k": 1.5}, {"rerank": True}, {"top_k": "3"}):
        with pytest.raises(TypeError, match="must be a whole number"):
            pipe("a dog", **options)


def test_a_length_goes_before_the_generation_configs(folder, photo):
    model = folder("AutoModelForImageTextToText")
    pipe = pipeline("image-to-text", model=model, device="cpu")
    pipe.model.generation_config.max_new_tokens = 30
    pipe.model.generation_config.eos_token_id = None
    short = pipe(photo, generate_kwargs={"max_length": 4})[0]["generated_text"]
    assert len(short.split()) <= 4
