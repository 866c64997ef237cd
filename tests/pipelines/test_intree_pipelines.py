"""transformers' own pipelines on a saved folder: they load the tokenizer and the image processor apart."""

import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor, pipeline


LABELS = ["dog", "a red cat", "th"]
TEMPLATE = "the photo of {}."


@pytest.fixture(scope="module", params=["causal", "all tokens"])
def folder(request, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("clip"))
    text = {} if request.param == "causal" else {"text_config": {"causal": False, "pooling": "last"}}
    tiny_model("hfvlm_clip", "AutoModel", **text).save_pretrained(folder)
    tiny_processor("hfvlm_clip", pad_to_max=bool(text)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    sizes = ((50, 40), (32, 64))
    return [Image.effect_mandelbrot(size, (-2, -1, 1, 1), 60).convert("RGB") for size in sizes]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_zero_shot_image_classification(folder, photos, batch_size):
    classify = pipeline("zero-shot-image-classification", model=folder)
    rows = classify(photos, candidate_labels=LABELS, hypothesis_template=TEMPLATE, batch_size=batch_size)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    texts = [TEMPLATE.format(label) for label in LABELS]
    with torch.no_grad():
        expected = model(**processor(images=photos, text=texts)).logits_per_image.softmax(-1)
    assert len({row["label"] for row in rows[0]}) == len(LABELS)
    for row, scores in zip(rows, expected.tolist()):
        found = {entry["label"]: entry["score"] for entry in row}
        assert found == pytest.approx(dict(zip(LABELS, scores)), abs=1e-3)


def test_image_feature_extraction(folder, photos):
    extract = pipeline("image-feature-extraction", model=folder)
    pooled = torch.tensor(extract(photos[0], pool=True))
    tokens = torch.tensor(extract(photos[0]))
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model.get_image_features(**processor(images=photos[0]))
    torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(tokens, expected.last_hidden_state, atol=1e-2, rtol=1e-2)


def test_image_classification(photos, tmp_path):
    names = {0: "cat", 1: "dog", 2: "horse"}
    model = tiny_model("hfvlm_clip", "AutoModelForImageClassification", id2label=names)
    model.save_pretrained(tmp_path)
    processor = tiny_processor("hfvlm_clip")
    processor.save_pretrained(tmp_path)
    rows = pipeline("image-classification", model=str(tmp_path))(photos[0], top_k=3)
    with torch.no_grad():
        expected = model(**processor(images=photos[0])).logits.softmax(-1)[0]
    found = {row["label"]: row["score"] for row in rows}
    assert found == pytest.approx(dict(zip(names.values(), expected.tolist())), abs=1e-3)
