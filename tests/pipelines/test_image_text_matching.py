"""The image-text-matching pipeline: texts judged with an image, as the head judges them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor

import hfvlm
from hfvlm.images import ImageError


RETRIEVAL = "AutoModelForImageTextRetrieval"
TEXTS = ["a dog", "two cats on the beach", "a red ball"]


@pytest.fixture(scope="module", params=["albef", "blip"])
def parts(request):
    return tiny_model(request.param, RETRIEVAL), tiny_processor(request.param)


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
    cosines = outputs.image_embeds @ outputs.text_embeds.t()
    assert [row["similarity"] for row in rows] == pytest.approx(cosines[0].tolist(), abs=1e-5)


def test_images_with_texts_of_their_own(pipe, photos):
    rows = pipe([{"image": photos[0], "text": TEXTS[0]}, {"image": photos[1], "text": TEXTS}])
    assert [len(found) for found in rows] == [1, 3]
    assert rows[0] == pipe(photos[0], text=TEXTS[0])


@pytest.mark.parametrize("own", [TEXTS[:2], TEXTS[1:2]], ids=["more than images", "one"])
def test_a_batch_is_judged_as_each_image_alone(pipe, photos, own):
    rows = [{"image": photos[0], "text": own}, {"image": photos[1], "text": [*TEXTS, "a dog on the beach"]}, photos[0]]
    together = pipe(rows, text="a cat", batch_size=2)
    for found, row in zip(together, rows, strict=True):
        alone = pipe(row, text="a cat")
        assert [one["text"] for one in found] == [one["text"] for one in alone]
        for name in ("score", "similarity"):
            assert [one[name] for one in found] == pytest.approx([one[name] for one in alone], abs=1e-5)


def test_the_similarity_is_a_cosine_whatever_the_temperature(parts, photos):
    model, processor = tiny_model(parts[0].config.model_type.removeprefix("hfvlm_"), RETRIEVAL), parts[1]
    pipe = hfvlm.pipeline("image-text-matching", model, processor=processor, device="cpu")
    before = pipe(photos[0], text=TEXTS)
    with torch.no_grad():
        model.temp.mul_(0.5)
    assert pipe(photos[0], text=TEXTS) == before


def test_a_row_with_nothing_of_its_own_takes_what_the_call_says(pipe, photos):
    assert pipe({"image": photos[0], "text": None}, text="a dog") == pipe(photos[0], text="a dog")


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
