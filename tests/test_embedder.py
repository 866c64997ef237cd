"""The embedder: what the model itself computes, batch by batch, for any two-tower model."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from transformers import pipeline
from two_towers import stock_clip, stock_processor

from hfvlm.embedder import Embedder
from hfvlm.evaluation.zero_shot import ZeroShotClassifier
from hfvlm.images import ImageError
from hfvlm.nearest import nearest
from hfvlm.registry import ARCHITECTURES


#: architectures with two towers; "stock" is transformers' own CLIP
TWO_TOWERS = [
    row.model_type
    for row in ARCHITECTURES.values()
    if "AutoModelForZeroShotImageClassification" in row.heads and "AutoModelForImageTextRetrieval" not in row.heads
]

TEXTS = ["a dog", "two cats on the beach", "a", "the man plays with a red ball " * 5]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)) for i in range(5)]


@pytest.fixture(scope="module", params=[*TWO_TOWERS, "stock"])
def two_towers(request):
    if request.param == "stock":
        return stock_clip(), stock_processor(), {"padding": True, "truncation": True}
    return tiny_model(request.param, "AutoModel"), tiny_processor(request.param), {}


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_embeds_as_the_model_does(two_towers, images, batch_size):
    model, processor, options = two_towers
    outputs = model(**processor(images=images, text=TEXTS, return_tensors="pt", **options))
    embed = Embedder(model, processor, batch_size)
    image_embeds, text_embeds = embed.images(images), embed.texts(TEXTS)
    torch.testing.assert_close(image_embeds, outputs.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text_embeds, outputs.text_embeds, atol=1e-5, rtol=1e-5)
    logits = embed.logits(image_embeds, text_embeds)
    torch.testing.assert_close(logits, outputs.logits_per_image, atol=1e-4, rtol=1e-4)
    assert not embed.is_sigmoid


@pytest.mark.parametrize("model_type", TWO_TOWERS)
def test_stock_pipelines_agree(model_type, images, tmp_path):
    model, processor = tiny_model(model_type, "AutoModel"), tiny_processor(model_type)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    labels = ["dog", "red ball"]
    rows = pipeline("zero-shot-image-classification", model=str(tmp_path))(images[0], candidate_labels=labels)
    classify = ZeroShotClassifier(model, processor, labels, ["This is a photo of {}."])
    expected = dict(zip(labels, classify.predict(images[:1])[0].tolist()))
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-5)
    extract = pipeline("image-feature-extraction", model=str(tmp_path))
    pooled = torch.nn.functional.normalize(torch.tensor(extract(images[0], pool=True)), dim=-1)
    torch.testing.assert_close(pooled, classify.embedder.images(images[:1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["hfvlm_albef", "hfvlm_blip"])
def test_a_fusion_models_retrieval_head_embeds_too(model_type, images):
    """Its texts are read whole, and similarities are divided by its temperature."""
    model, processor = tiny_model(model_type, "AutoModelForImageTextRetrieval"), tiny_processor(model_type)
    embed = Embedder(model, processor, batch_size=3)
    tokens = embed.tokens(TEXTS)
    assert (tokens["input_ids"][:, 0] == processor.tokenizer.cls_token_id).all()
    with torch.no_grad():
        outputs = model(processor(images=images)["pixel_values"], **tokens)
    image_embeds, text_embeds = embed.images(images), embed.texts(TEXTS)
    cosines = model.config.initial_temperature * outputs.logits_per_image
    torch.testing.assert_close(image_embeds @ text_embeds.t(), cosines, atol=1e-5, rtol=1e-4)
    logits = embed.logits(image_embeds, text_embeds)
    torch.testing.assert_close(logits, outputs.logits_per_image, atol=1e-4, rtol=1e-4)


def test_half_precision_gives_float32_vectors_of_length_one(two_towers, images):
    model, processor, _ = two_towers
    full = Embedder(model, processor).images(images)
    half = Embedder(model.to(torch.bfloat16), processor).images(images)
    model.float()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=-1), torch.ones(len(images)))
    assert (half * full).sum(-1).min() > 0.98


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(images, value):
    embed = Embedder(stock_clip(), stock_processor())
    with torch.no_grad():
        embed.model.visual_projection.weight[0, 0] = value
    with pytest.raises(ValueError, match="CLIPModel gives NaN or infinite features in torch.float32.*--dtype fp32"):
        embed.images(images)
    assert embed.texts(TEXTS).isfinite().all()


def test_reads_a_generator_batch_by_batch(two_towers, images):
    model, processor, _ = two_towers
    batches = Embedder(model, processor, 2).image_batches(image for image in images)
    assert [positions for positions, _ in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda embed: embed.texts([]), ValueError, "texts is empty"),
        (lambda embed: embed.images([]), ValueError, "images is empty"),
        (lambda embed: embed.texts(["a", 3]), TypeError, "a text must be a string, got int"),
        (lambda embed: embed.images(["gone.jpg"]), ImageError, "gone.jpg: no such file"),
        (lambda embed: Embedder(embed.model, embed.processor, 0), ValueError, "batch_size must be at least 1, got 0"),
        (lambda embed: Embedder(torch.nn.Linear(1, 1), embed.processor), TypeError, "Linear does not embed images"),
        (lambda embed: Embedder(embed.model, embed.processor.tokenizer), TypeError, "AutoProcessor"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(Embedder(stock_clip(), stock_processor()))


@pytest.mark.parametrize("chunk_size", [3, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nearest_is_exact_in_chunks(chunk_size, dtype):
    generator = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(50, 8, generator=generator).to(dtype), torch.randn(4, 8, generator=generator)
    scores, found = nearest(queries, rows, 9, chunk_size)
    expected, order = (queries @ rows.float().t()).topk(9)
    assert torch.equal(found, order)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("chunk_size", [1, 30, 200])
def test_nearest_gives_what_there_is_and_equals_once_each(chunk_size):
    rows = torch.ones(100, 2)
    scores, found = nearest(torch.ones(1, 2), rows, 200, chunk_size)
    assert scores.tolist() == [[2.0] * 100]
    assert sorted(found[0].tolist()) == list(range(100))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        nearest(torch.ones(1, 2), rows, 0)
    with pytest.raises(ValueError, match=r"queries \[1, 3\] must be \[q, 2\]"):
        nearest(torch.ones(1, 3), rows, 1)
