"""Caption metrics: the scores of pycocoevalcap itself."""

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from hfvlm.evaluation import metric


CAPTIONS = ["A brown dog runs on the grass.", "two children are playing with a red ball", "a man", ""]
REFERENCES = [
    ["A dog is running on the grass .", "The brown dog's running, fast!"],
    ["Two kids play with a ball", "two children play in the sand .", "Children with a red ball"],
    ["A man on a bike"],
    ["A woman in a hat"],
]
#: their words, by hand
ANSWERS = {
    0: ["a brown dog runs on the grass"],
    1: ["two children are playing with a red ball"],
    2: ["a man"],
    3: [""],
}
WANTED = {
    0: ["a dog is running on the grass", "the brown dog 's running fast"],
    1: ["two kids play with a ball", "two children play in the sand", "children with a red ball"],
    2: ["a man on a bike"],
    3: ["a woman in a hat"],
}


def test_bleu():
    expected, _ = Bleu(4).compute_score(WANTED, ANSWERS, verbose=0)
    scores = metric("bleu").compute(predictions=CAPTIONS, references=REFERENCES)
    assert scores == {f"bleu_{n}": pytest.approx(score, abs=1e-12) for n, score in enumerate(expected, 1)}
    assert 0.3 < scores["bleu_1"] < 1


@pytest.mark.parametrize(("name", "scorer"), [("cider", Cider), ("rouge_l", Rouge)])
def test_cider_and_rouge(name, scorer):
    expected, _ = scorer().compute_score(WANTED, ANSWERS)
    scores = metric(name).compute(predictions=CAPTIONS, references=REFERENCES)
    assert scores == {name: pytest.approx(expected, abs=1e-12)}
    assert scores[name] > 0.2


def test_the_order_of_rows_and_how_they_are_added_do_not_matter():
    scorer = metric("cider")
    for caption, references in reversed(list(zip(CAPTIONS, REFERENCES))):
        scorer.add(prediction=caption, reference=references)
    assert scorer.compute() == {
        "cider": pytest.approx(metric("cider").compute(predictions=CAPTIONS, references=REFERENCES)["cider"])
    }
