"""The image-text-matching pipeline: texts judged with an image, as the head judges them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

import hfvlm
from hfvlm.images import ImageError


TEXTS = ["a dog", "two cats on the beach", "a red ball"]


@pytest.fixture(scope="module", params=["albef", "blip"])
def parts(request):
    return tiny_model(request.param, "AutoModelForImageTextRetrieval"), tiny_processor(request.param)


@pytest.fixture
def pipe(parts):
    return hfvlm.pipeline("image-text-matching", parts[0], processor=parts[1], device="cpu")


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]


def test_texts_are_judged_as_by_the_head(pipe, parts, photos):
    model, processor = parts
    options = {"task": "encode"} if isinstance(processor, hfvlm.BlipProcessor) else {}
    with torch.no_grad():
        outputs = model(**processor(images=photos[:1], text=TEXTS, **options))
    rows = pipe(photos[0], text=TEXTS)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["score"] for row in rows] == pytest.approx(outputs.itm_logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    assert [row["similarity"] for row in rows] == pytest.approx(outputs.logits_per_image[0].tolist(), abs=1e-5)


def test_images_with_texts_of_their_own(pipe, photos):
    rows = pipe([{"image": photos[0], "text": TEXTS[0]}, {"image": photos[1], "text": TEXTS}])
    assert [len(found) for found in rows] == [1, 3]
    assert rows[0] == pipe(photos[0], text=TEXTS[0])


def test_a_saved_folder_answers(pipe, photos, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = hfvlm.pipeline("image-text-matching", str(tmp_path), device="cpu", dtype="float32")
    assert again(photos[0], text="a dog")[0]["score"] == pytest.approx(pipe(photos[0], text="a dog")[0]["score"])
    search = hfvlm.pipeline("image-text-retrieval", str(tmp_path), device="cpu", dtype="float32")
    assert len(search.index(texts=TEXTS)(photos[0], top_k=2)) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, photo: pipe(), ValueError, "pass images"),
        (lambda pipe, photo: pipe(photo), ValueError, "text is empty"),
        (lambda pipe, photo: pipe(photo, text=[]), ValueError, "text is empty"),
        (lambda pipe, photo: pipe(photo, text=["a", " "]), ValueError, "text is empty"),
        (lambda pipe, photo: pipe(photo, text=["a", 1]), TypeError, "got int"),
        (lambda pipe, photo: pipe({"text": "a"}), ValueError, "a row needs an 'image'"),
        (lambda pipe, photo: pipe("nowhere.jpg", text="a"), ImageError, "nowhere.jpg"),
    ],
)
def test_bad_input_is_named(pipe, photos, call, error, message):
    with pytest.raises(error, match=message):
        call(pipe, photos[0])


def test_a_model_that_judges_nothing_is_refused():
    with pytest.raises(TypeError, match="BlipModel does not judge pairs"):
        hfvlm.pipelines.image_text_matching.ImageTextMatchingPipeline(tiny_model("blip", "AutoModel"), object())
