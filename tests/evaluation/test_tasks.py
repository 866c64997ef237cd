"""Evaluators: what they pass to a model, and what they make of its outputs."""

import pytest
import torch
from PIL import Image
from tiny import tiny_model, tiny_processor
from two_towers import stock_clip, stock_processor

from hfvlm.embedder import Embedder
from hfvlm.evaluation import metric
from hfvlm.evaluation.retrieval import recall_at
from hfvlm.evaluation.tasks import check, evaluate_captioning, evaluate_classes, evaluate_retrieval, evaluate_vqa
from hfvlm.images import open_image
from hfvlm.pipelines import pipeline


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Five photos of noise, two captions each."""
    found = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.effect_noise((40, 36 + i), 60 + i).convert("RGB").save(path)
        found.append({"image": path, "captions": [f"a dog on the grass {i}", "a red ball"][: 1 + i % 2]})
    return found


QUESTIONS = [
    {"image": "a.jpg", "question": "what colour is the ball", "answers": ["red"]},
    {"image": "a.jpg", "question": "how many dogs", "answers": ["two"]},
    {"image": "b.jpg", "question": "where is the cat", "answers": ["on grass"] * 4 + ["outside"] * 6},
]


class FakeVqa:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: str):
        self.answers, self.asked = list(answers), []

    def __call__(self, rows, batch_size, **options):
        self.asked.append((rows, batch_size, options))
        taken, self.answers = self.answers[: len(rows)], self.answers[len(rows) :]
        return [[{"answer": answer, "score": 0.9}, {"answer": "other", "score": 0.1}] for answer in taken]


def test_captioning(rows):
    model, processor = tiny_model("hfvlm_blip", "AutoModelForImageTextToText"), tiny_processor("hfvlm_blip")
    pipe = pipeline("image-to-text", model, processor=processor)
    outputs = pipe([str(row["image"]) for row in rows], generate_kwargs={"num_beams": 2})
    captions = [output[0]["generated_text"] for output in outputs]
    done = []
    scores = evaluate_captioning(
        pipe, rows, 2, lambda *numbers: done.append(numbers), generate_kwargs={"num_beams": 2}
    )
    references = [row["captions"] for row in rows]
    for name in ("bleu", "rouge_l", "cider"):
        for key, value in metric(name).compute(predictions=captions, references=references).items():
            assert scores.pop(key) == pytest.approx(value, abs=1e-9)
    assert scores == {}
    assert done == [(i, 5) for i in range(1, 6)]


def test_retrieval(rows):
    embed = Embedder(stock_clip(), stock_processor(), batch_size=2)
    texts = [caption for row in rows for caption in row["captions"]]
    similarity = embed.images([row["image"] for row in rows]) @ embed.texts(texts).t()
    done = []
    recalls = evaluate_retrieval(embed, rows, lambda *numbers: done.append(numbers), ks=(1, 2))
    assert recalls == recall_at(similarity, [0, 1, 1, 2, 3, 3, 4], (1, 2))
    assert done[0] == (2, 12) and done[-1] == (12, 12)
    assert torch.isfinite(similarity).all()


@pytest.mark.parametrize("rerank", [1, 2, 50])
def test_retrieval_judged_again(rows, rerank):
    """Each pair judged by itself; those beyond the nearest stay where similarity has them."""
    model, processor = tiny_model("blip", "AutoModelForImageTextRetrieval"), tiny_processor("blip")
    embed = Embedder(model, processor, batch_size=2)
    for row, captions in zip(
        rows, (["a dog", "two cats"], ["a red ball"], ["the cat sits"], ["dog", "grass"], ["big"])
    ):
        row["captions"] = captions
    texts = [(caption, image) for image, row in enumerate(rows) for caption in row["captions"]]
    similarity = embed.images([row["image"] for row in rows]) @ embed.texts([text for text, _ in texts]).t()
    scores = similarity.clone()
    for image, row in enumerate(rows):
        tokens = embed.encode(**embed.loader([row["image"]]))[1]
        for place, (text, _) in enumerate(texts):
            with torch.inference_mode():
                scores[image, place] += model.match(tokens, **embed.tokens([text]))[0, 1]

    def rank(near: torch.Tensor, judged: torch.Tensor, right: list[int]) -> int:
        order = near.argsort(descending=True).tolist()
        order = sorted(order[:rerank], key=lambda place: -judged[place]) + order[rerank:]
        return min(order.index(place) for place in right)

    own = [[place for place, (_, image) in enumerate(texts) if image == row] for row in range(len(rows))]
    ranks = {
        "image_to_text": [rank(similarity[i], scores[i], own[i]) for i in range(len(rows))],
        "text_to_image": [rank(similarity[:, t], scores[:, t], [image]) for t, (_, image) in enumerate(texts)],
    }
    expected = {f"{way}_r@{k}": sum(r < k for r in each) / len(each) for way, each in ranks.items() for k in (1, 2, 3)}
    assert evaluate_retrieval(embed, rows, ks=(1, 2, 3), rerank=rerank) == pytest.approx(expected)


def test_rerank_is_checked(rows):
    embed = Embedder(stock_clip(), stock_processor())
    with pytest.raises(ValueError, match="rerank must be at least 1, got 0"):
        evaluate_retrieval(embed, rows, rerank=0)
    with pytest.raises(ValueError, match="rerank needs a model that judges pairs"):
        evaluate_retrieval(embed, rows, rerank=2)


def test_vqa():
    pipe, done = FakeVqa("Red.", "three", "on the grass"), []
    scores = evaluate_vqa(pipe, QUESTIONS, 2, lambda *numbers: done.append(numbers), top_k=2)
    assert scores == {"vqa_accuracy": pytest.approx(2 / 3)}
    assert [len(rows) for rows, _, _ in pipe.asked] == [2, 1]
    assert pipe.asked[0] == (
        [{"image": row["image"], "question": row["question"]} for row in QUESTIONS[:2]],
        2,
        {"top_k": 2},
    )
    assert done == [(2, 3), (3, 3)]


@pytest.mark.parametrize("auto", ["AutoModelForVisualEntailment", "AutoModelForVisualReasoning"])
@pytest.mark.parametrize("architecture", ["albef", "blip"])
def test_classes(rows, auto, architecture):
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model, processor = tiny_model(architecture, auto, **names), tiny_processor(architecture)
    options = {"task": "encode"} if architecture == "blip" else {}
    judged = [
        {"image": row["image"], "image_second": rows[i - 1]["image"], "text": row["captions"][0], "label": i % 2}
        for i, row in enumerate(rows)
    ]
    said = []
    for row in judged:
        inputs = processor(images=[open_image(row["image"])], text=[row["text"]], **options)
        if "Reasoning" in auto:
            second = processor(images=[open_image(row["image_second"])])
            inputs["pixel_values_second"] = second["pixel_values"]
        with torch.no_grad():
            said.append(int(model(**inputs).logits.argmax()))
    done = []
    scores = evaluate_classes(model.train(), processor, judged, 2, lambda *numbers: done.append(numbers))
    assert scores == {"accuracy": sum(i % 2 == one for i, one in enumerate(said)) / 5}
    assert done == [(2, 5), (4, 5), (5, 5)] and not model.training
    right = [{**row, "label": names["id2label"][one].upper()} for row, one in zip(judged, said)]
    assert evaluate_classes(model, processor, right) == {"accuracy": 1.0}
    with pytest.raises(ValueError, match=r"rows\[4\] has the label 'maybe', this model has the classes 0 \(no\)"):
        evaluate_classes(model, processor, [*judged[:4], {**judged[4], "label": "maybe"}])


@pytest.mark.parametrize(
    ("task", "row", "missing"),
    [
        ("entailment", {"image": "a.jpg", "text": "a"}, "'label'"),
        ("entailment", {"image": "a.jpg", "label": 0}, "'text'"),
        ("reasoning", {"image": "a.jpg", "label": 0, "text": "a"}, "'image_second'"),
    ],
)
def test_rows_without_what_is_judged(task, row, missing):
    with pytest.raises(ValueError, match=rf"rows\[0\] \(a\.jpg\) needs {missing}"):
        check(task, [row])
    with pytest.raises(ValueError, match="rows is empty"):
        check(task, [])


def test_a_question_without_an_answer():
    with pytest.raises(ValueError, match=r"no answer to 'what colour is the ball', about a\.jpg"):
        evaluate_vqa(lambda rows, batch_size: [[] for _ in rows], QUESTIONS)


@pytest.mark.parametrize("evaluator", [evaluate_captioning, evaluate_retrieval, evaluate_vqa])
def test_no_rows(evaluator):
    with pytest.raises(ValueError, match="rows is empty"):
        evaluator(None, [])


@pytest.mark.parametrize(
    ("task", "row", "name"),
    [
        ("captioning", {"image": "a.jpg", "captions": []}, "captions"),
        ("retrieval", {"image": "a.jpg", "captions": "a dog"}, "captions"),
        ("retrieval", {"image": "a.jpg", "captions": [None]}, "captions"),
        ("vqa", {"image": "a.jpg", "question": "what"}, "answers"),
    ],
)
def test_rows_without_what_is_right(task, row, name):
    with pytest.raises(ValueError, match=rf"rows\[0\] \(a\.jpg\) needs '{name}', a list of at least one string"):
        check(task, [row])
    evaluator = {"captioning": evaluate_captioning, "retrieval": evaluate_retrieval, "vqa": evaluate_vqa}[task]
    with pytest.raises(ValueError, match=rf"needs '{name}'"):
        evaluator(None, [row])
