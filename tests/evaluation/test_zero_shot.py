"""Zero-shot classification: prompts averaged, weights kept, labels checked."""

import numpy as np
import pytest
import torch
from PIL import Image
from two_towers import stock_clip, stock_processor

from hfvlm.evaluation.zero_shot import TEMPLATES, ZeroShotClassifier


LABELS = ["dog", "red ball", "tree"]


@pytest.fixture(scope="module")
def model():
    return stock_clip()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)) for i in range(3)]


@torch.no_grad()
def test_one_template_is_what_the_model_says(model, images):
    processor = stock_processor()
    prompts = [f"a photo of a {label}." for label in LABELS]
    outputs = model(**processor(images=images, text=prompts, padding=True, return_tensors="pt"))
    probabilities = ZeroShotClassifier(model, processor, LABELS).predict(images)
    torch.testing.assert_close(probabilities, outputs.logits_per_image.softmax(dim=-1), atol=1e-5, rtol=1e-4)


def test_weights_are_the_mean_of_the_prompts_embeddings(model, images):
    processor = stock_processor()
    classify = ZeroShotClassifier(model, processor, LABELS, TEMPLATES["ensemble"], batch_size=4)
    for label, weight in zip(LABELS, classify.weights, strict=True):
        prompts = [template.format(label) for template in TEMPLATES["ensemble"]]
        mean = classify.embedder.texts(prompts).mean(dim=0)
        torch.testing.assert_close(weight, mean / mean.norm(), atol=1e-5, rtol=1e-5)
    assert classify.predict(images).sum(dim=-1) == pytest.approx(1.0)


def test_weights_are_computed_once(model, images):
    calls = []
    classify = ZeroShotClassifier(model, stock_processor(), LABELS)
    texts = classify.embedder.texts
    classify.embedder.texts = lambda prompts: calls.append(prompts) or texts(prompts)
    classify.predict(images)
    classify.predict(images[:1])
    assert len(calls) == 1


def test_a_sigmoid_model_says_each_by_itself(model, images):
    classify = ZeroShotClassifier(model, stock_processor(), LABELS)
    model.logit_bias, model.config.objective = torch.nn.Parameter(torch.tensor(-2.0)), "sigmoid"
    try:
        embeds = classify.embedder.images(images)
        expected = (model.logit_scale.exp() * embeds @ classify.weights.t() - 2).sigmoid()
        torch.testing.assert_close(classify.predict(images), expected.detach())
    finally:
        del model.logit_bias, model.config.objective


def test_streams_batches(model, images):
    classify = ZeroShotClassifier(model, stock_processor(), LABELS, batch_size=2)
    batches = list(classify.stream(iter(images)))
    assert [positions for positions, _ in batches] == [[0, 1], [2]]
    torch.testing.assert_close(torch.cat([scores for _, scores in batches]), classify.predict(images))


def test_known_templates_have_a_place_for_the_label():
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "labels is empty"),
        ((["", " "],), ValueError, "labels is empty"),
        ((["dog", ""],), ValueError, "empty one, at position 1"),
        ((["dog", "cat", "dog "],), ValueError, "labels holds 'dog' more than once"),
        (("dog",), TypeError, "labels must be a list of strings"),
        ((["dog", 3],), TypeError, "labels must be a list of strings"),
        ((["dog"], []), ValueError, "templates is empty"),
        ((["dog"], ["a photo"]), ValueError, "template 'a photo' has no {}"),
        ((["dog"], "a photo of {}"), TypeError, "templates must be a list"),
    ],
)
def test_bad_input(model, arguments, error, message):
    with pytest.raises(error, match=message):
        ZeroShotClassifier(model, stock_processor(), *arguments)


def test_no_scale(model, images):
    classify = ZeroShotClassifier(stock_clip(), stock_processor(), LABELS)
    del classify.embedder.model.logit_scale
    with pytest.raises(TypeError, match="CLIPModel has neither"):
        classify.predict(images)
