"""The visual-reasoning pipeline: statements about two images, judged as the head judges them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

import hfvlm
from hfvlm.images import ImageError
from hfvlm.pipelines.visual_reasoning import VisualReasoningPipeline


TEXT = "two dogs on the grass"


@pytest.fixture(scope="module", params=["albef", "blip"])
def parts(request):
    names = {"id2label": {0: "False", 1: "True"}, "label2id": {"False": 0, "True": 1}}
    return tiny_model(request.param, "AutoModelForVisualReasoning", **names), tiny_processor(request.param)


@pytest.fixture
def pipe(parts):
    return hfvlm.pipeline("visual-reasoning", parts[0], processor=parts[1], device="cpu")


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def test_a_statement_is_judged_as_by_the_head(pipe, parts, photos):
    model, processor = parts
    options = {"task": "encode"} if isinstance(processor, hfvlm.BlipProcessor) else {}
    batch = processor(images=photos[:1], text=[TEXT], **options)
    second = processor(images=photos[1:2])["pixel_values"]
    with torch.no_grad():
        scores = model(**batch, pixel_values_second=second).logits.softmax(-1)[0].tolist()
    found = pipe(photos[:2], text=TEXT)
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        dict(zip(("False", "True"), scores)), abs=1e-5
    )
    assert found[0]["score"] >= found[1]["score"]
    assert pipe(tuple(photos[:2]), text=TEXT) == found
    assert pipe({"image": photos[0], "image_second": photos[1], "text": TEXT}) == found
    assert pipe(photos[1::-1], text=TEXT)[0]["score"] != pytest.approx(found[0]["score"], abs=1e-6)


def test_several_pairs_alone_and_in_a_batch(pipe, photos):
    rows = [photos[:2], {"image": photos[2], "image_second": photos[0], "text": "a red ball in the snow"}]
    found = pipe(rows, text=TEXT)
    assert found[0] == pipe(photos[:2], text=TEXT) and found[1] == pipe(rows[1])
    for together, alone in zip(pipe(rows, text=TEXT, batch_size=2), found, strict=True):
        assert [one["label"] for one in together] == [one["label"] for one in alone]
        assert [one["score"] for one in together] == pytest.approx([one["score"] for one in alone], abs=1e-5)


def test_a_saved_folder_judges(pipe, photos, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = hfvlm.pipeline(model=str(tmp_path), device="cpu", dtype="float32")
    assert again.task == "visual-reasoning"
    expected = pipe(photos[:2], text=TEXT)
    assert again(photos[:2], text=TEXT)[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, photos: pipe(text="a"), ValueError, "pass images"),
        (lambda pipe, photos: pipe(photos[0], text="a"), ValueError, "about two images, got 1: pass .first, second."),
        (lambda pipe, photos: pipe("photo.jpg", text="a"), ValueError, "about two images, got 1"),
        (lambda pipe, photos: pipe([photos[0]], text="a"), ValueError, "about two images, got 1"),
        (lambda pipe, photos: pipe([], text="a"), ValueError, "about two images, got none"),
        (lambda pipe, photos: pipe(photos, text="a"), ValueError, "about two images, got 3"),
        (lambda pipe, photos: pipe([photos[:2], photos], text="a"), ValueError, "about two images, got 3"),
        (lambda pipe, photos: pipe({"image": photos[0]}, text="a"), ValueError, "needs 'image_second', .* has image"),
        (lambda pipe, photos: pipe(photos[:2]), ValueError, "text is empty"),
        (lambda pipe, photos: pipe(photos[:2], text=" "), ValueError, "text is empty"),
        (lambda pipe, photos: pipe(photos[:2], text=["a"]), TypeError, "text must be a string, got list"),
        (lambda pipe, photos: pipe([photos[0], "nowhere.jpg"], text="a"), ImageError, "nowhere.jpg"),
    ],
)
def test_bad_input_is_named(pipe, photos, call, error, message):
    with pytest.raises(error, match=message):
        call(pipe, photos)


def test_a_model_that_reads_one_image_is_refused():
    with pytest.raises(TypeError, match="BlipModel does not read two images"):
        VisualReasoningPipeline(tiny_model("blip", "AutoModel"), object())
    with pytest.raises(ValueError, match="needs processor="):
        VisualReasoningPipeline(tiny_model("blip", "AutoModel"))
