"""The image-text-retrieval pipeline: a collection, then queries of either kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from two_towers import stock_clip, stock_processor

from hfvlm.embedder import Embedder
from hfvlm.hub.bundle import flatten
from hfvlm.images import ImageError
from hfvlm.pipelines.image_text_retrieval import ImageTextRetrievalPipeline


TEXTS = ["a dog", "two cats on the beach", "a red ball", "snow"]


@pytest.fixture(scope="module")
def model():
    return stock_clip()


@pytest.fixture
def pipe(model):
    return ImageTextRetrievalPipeline(model=model, processor=stock_processor(), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photos, one in a folder of its own, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "more/f.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return [str(folder / name) for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "more/f.png")]


@pytest.fixture(scope="module")
def similarity(model, paths):
    """`[texts, images]`."""
    embed = Embedder(model, stock_processor())
    return embed.texts(TEXTS) @ embed.images(paths).t()


def test_images_by_text(pipe, folder, paths, similarity):
    assert pipe.index(images=folder) is pipe
    for text, row in zip(TEXTS, similarity, strict=True):
        results = pipe(text, top_k=3)
        assert [result["index"] for result in results] == row.argsort(descending=True)[:3].tolist()
        assert [result["image"] for result in results] == [paths[result["index"]] for result in results]
        assert [result["score"] for result in results] == pytest.approx(row.sort(descending=True)[0][:3].tolist())
    assert len(pipe("a dog")) == 5
    assert len(pipe("a dog", top_k=100)) == 6


def test_images_by_image(pipe, paths):
    pipe.index(images=paths)
    photo = Image.open(paths[2])
    for query in (photo, Path(paths[2]), {"image": paths[2]}, Path(paths[2]).read_bytes()):
        [best] = pipe(query, top_k=1)
        assert (best["index"], best["image"]) == (2, paths[2])
        assert best["score"] == pytest.approx(1.0, abs=1e-5)


def test_texts_by_image(pipe, paths, similarity):
    pipe.index(texts=TEXTS)
    results = pipe(Path(paths[0]), top_k=4)
    order = similarity[:, 0].argsort(descending=True).tolist()
    assert results == [
        {"score": pytest.approx(similarity[i, 0].item(), abs=1e-6), "text": TEXTS[i], "index": i} for i in order
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_several_queries(pipe, folder, paths, batch_size):
    pipe.index(images=folder)
    texts = pipe(TEXTS, top_k=2, batch_size=batch_size)
    assert [[row["index"] for row in rows] for rows in texts] == [
        [row["index"] for row in pipe(text, top_k=2)] for text in TEXTS
    ]
    images = pipe([Path(path) for path in paths], top_k=1, batch_size=batch_size)
    assert [rows[0]["index"] for rows in images] == list(range(6))
    assert pipe([]) == []


def test_a_mixed_list(pipe, folder, paths):
    pipe.index(images=folder)
    rows = pipe(["a dog", Path(paths[1])], top_k=1)
    assert rows == [pipe("a dog", top_k=1), pipe(Path(paths[1]), top_k=1)]
    with pytest.raises(ValueError, match="all texts or all images"):
        pipe(["a dog", Path(paths[1])], batch_size=2)


class Column:
    """A sequence that decodes an image when it is asked for it, as a column of a dataset does."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(self.paths[index])


def test_dataset_column_and_pil_images(pipe, paths, similarity):
    rows = [{"image": path} for path in paths]
    expected = similarity[0].argmax().item()
    for images in (Column(paths), rows, [Image.open(path) for path in paths], (path for path in paths)):
        [best] = pipe.index(images=images, batch_size=4)("a dog", top_k=1)
        assert best["index"] == expected


def test_unreadable_images(pipe, paths, similarity):
    images = [paths[0], "gone.jpg", *paths[1:]]
    with pytest.raises(ImageError, match="gone.jpg: no such file"):
        pipe.index(images=images)
    results = pipe.index(images=images, skip_unreadable=True)("a dog", top_k=10)
    assert sorted(result["index"] for result in results) == [0, 2, 3, 4, 5, 6]
    assert all(result["image"] == images[result["index"]] for result in results)
    with pytest.raises(ValueError, match="none of the 1 images"):
        pipe.index(images=["gone.jpg"], skip_unreadable=True)


@pytest.fixture(scope="module", params=["albef", "blip"])
def judge(request):
    """A model that judges pairs, its processor, and the embedder of both."""
    model = tiny_model(request.param, "AutoModelForImageTextRetrieval", momentum=None)
    return model, tiny_processor(request.param)


@pytest.fixture(scope="module")
def judged(judge, paths):
    """Similarities and scores, both `[texts, images]`, each pair judged by itself."""
    model, processor = judge
    embed = Embedder(model, processor)
    similarity = embed.texts(TEXTS) @ embed.images(paths).t()
    inputs = [embed.tokens([text]) for text in TEXTS]
    with torch.inference_mode():
        tokens = [model.get_image_features(embed.loader([path])["pixel_values"]).last_hidden_state for path in paths]
        logits = [[model.match(image, **{**text})[0, 1] for image in tokens] for text in inputs]
    scores = torch.tensor(logits)
    return similarity, scores + similarity if model.rerank_adds_similarity else scores


def check_judged(results, similarity, scores, k):
    """That results are the nearest `k` by score; of one query."""
    near = similarity.argsort(descending=True)
    expected = sorted(near[:k].tolist(), key=lambda i: -scores[i])
    assert [row["index"] for row in results] == expected[: len(results)]
    for row in results:
        assert row["similarity"] == pytest.approx(similarity[row["index"]].item(), abs=1e-5)
        assert row["score"] == pytest.approx(scores[row["index"]].item(), abs=1e-4)


@pytest.mark.parametrize("keep_tokens", [True, False])
def test_the_nearest_images_are_judged_again(judge, judged, paths, keep_tokens):
    pipe = ImageTextRetrievalPipeline(*judge, device="cpu").index(images=paths, batch_size=2, keep_tokens=keep_tokens)
    for k, top_k in ((3, 2), (2, 5), (100, 6)):
        for batch_size in (1, 3):
            for results, *expected in zip(pipe(TEXTS, rerank=k, top_k=top_k, batch_size=batch_size), *judged):
                assert len(results) == min(k, top_k) and "image" in results[0]
                check_judged(results, *expected, k)


def test_the_nearest_texts_are_judged_again(judge, judged, paths):
    pipe = ImageTextRetrievalPipeline(*judge, device="cpu").index(texts=TEXTS)
    queries = [Path(path) for path in paths]
    for batch_size in (1, 4):
        for results, *expected in zip(pipe(queries, rerank=2, batch_size=batch_size), *(part.t() for part in judged)):
            assert results[0]["text"] == TEXTS[results[0]["index"]]
            check_judged(results, *expected, 2)
    with pytest.raises(ValueError, match="not texts with texts"):
        pipe("a dog", rerank=2)


def test_a_failed_index_leaves_the_one_before(pipe, paths):
    pipe.index(images=paths)
    with pytest.raises(ImageError):
        pipe.index(images=["gone.jpg"])
    assert len(pipe("a dog", top_k=10)) == 6


def test_half_precision(model, paths, similarity):
    pipe = ImageTextRetrievalPipeline(model=stock_clip().to(torch.bfloat16), processor=stock_processor())
    [best] = pipe.index(images=paths)("a dog", top_k=1)
    assert best["score"] == pytest.approx(similarity[0].max().item(), abs=0.05)


def test_its_code_travels():
    code = {"pipelines_image_text_retrieval", "pipelines_base", "embedder", "pixels", "nearest", "images", "reranking"}
    code |= {"processing", "saving"}
    assert set(flatten(["hfvlm.pipelines.image_text_retrieval"])) == {f"{name}.py" for name in code}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe, folder: pipe("a dog"), RuntimeError, r"call index\(images=...\)"),
        (lambda pipe, folder: pipe.index(), ValueError, "images= or as texts="),
        (lambda pipe, folder: pipe.index(images=folder, texts=["a"]), ValueError, "not both"),
        (lambda pipe, folder: pipe.index(texts="a dog"), ValueError, "is no list of texts"),
        (lambda pipe, folder: pipe.index(images="nowhere"), ValueError, "'nowhere' is no folder"),
        (lambda pipe, folder: pipe.index(texts=[]), ValueError, "texts is empty"),
        (lambda pipe, folder: pipe.index(images=[]), ValueError, "images is empty"),
        (lambda pipe, folder: pipe.index(texts=["a", 1]), TypeError, "must be a string, got int"),
        (lambda pipe, folder: pipe.index(texts=["a"])(), ValueError, "pass a query"),
        (lambda pipe, folder: pipe.index(texts=["a"])(" "), ValueError, "empty text"),
        (lambda pipe, folder: pipe.index(texts=["a"])({"picture": 1}), ValueError, "needs an 'image'"),
        (lambda pipe, folder: pipe.index(texts=["a"])("a", top_k=0), ValueError, "top_k must be at least 1, got 0"),
        (lambda pipe, folder: pipe.index(texts=["a"])("a", rerank=0), ValueError, "rerank must be at least 1, got 0"),
        (lambda pipe, folder: pipe.index(texts=["a"])("a", rerank=2), ValueError, "CLIPModel only compares them"),
        (lambda pipe, folder: ImageTextRetrievalPipeline(model=pipe.model), ValueError, "needs processor="),
    ],
)
def test_bad_input(pipe, folder, call, error, message):
    with pytest.raises(error, match=message):
        call(pipe, folder)


def test_an_empty_folder(pipe, tmp_path):
    with pytest.raises(ValueError, match="images is empty"):
        pipe.index(images=tmp_path)
