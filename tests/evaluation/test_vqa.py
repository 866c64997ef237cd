"""VQA accuracy: the official normalisation, and people who agree or not."""

import pytest

from hfvlm.evaluation import metric
from hfvlm.evaluation.vqa import CONTRACTIONS, answer_accuracy, normalize_answer, strip_punctuation


@pytest.mark.parametrize(
    ("answer", "expected"),
    [  # recorded from the official code
        ("Two", "2"),
        ("none", "0"),
        ("ten dogs", "10 dogs"),
        ("The red ball.", "red ball"),
        ("an Apple and a pear", "apple and pear"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("twas", "'twas"),
        ("garbage_bin", "garbage bin"),
        ("t-shirt", "t shirt"),
        ("knife, fork", "knife fork"),
        ("yes!", "yes"),
        ("1,000", "1000"),
        ("1,000 yes/no", "1000 yesno"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("10:30", "10:30"),
        ("dog's", "dog's"),
        ("what ?", "what"),
        (" a\nb\tc ", "b c"),
    ],
)
def test_normalize_answer(answer, expected):
    assert normalize_answer(answer) == expected


def test_contractions():
    """Written without an apostrophe, or without one of two; as many as the official table has in lower case."""
    assert len(CONTRACTIONS) == 114
    for word in ("wouldntve", "wouldn't've", "wont't", "ill", "were", "shed"):  # other words, or not in the table
        assert word not in CONTRACTIONS
    assert CONTRACTIONS["wouldn'tve"] == CONTRACTIONS["wouldnt've"] == "wouldn't've"
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"


def test_strip_punctuation_keeps_case_and_words():
    assert strip_punctuation("The (big) Dog") == "The big Dog"


@pytest.mark.parametrize(("number", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_ten_people(number, expected):
    references = ["red"] * number + ["blue", "green"] * 5
    assert answer_accuracy("The red.", references[:10]) == pytest.approx(expected)


def test_people_are_normalised_only_where_they_differ():
    assert answer_accuracy("two", ["2"] * 10) == 0.0
    assert answer_accuracy("two", ["2"] * 9 + ["3"]) == 1.0
    assert answer_accuracy("2 ", ["2"] * 10) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("garbage bin", "garbage_bin", 1), ("Two", "2", 1), ("2", "two", 1), ("bin", "garbage_bin", 0)],
)
def test_one_reference(answer, reference, expected):
    assert answer_accuracy(answer, [reference]) == expected


def test_no_reference():
    with pytest.raises(ValueError, match="references is empty"):
        answer_accuracy("red", [])


def test_metric():
    references = [["red"] * 3 + ["blue"] * 7, ["chair"]]
    assert metric("vqa_accuracy").compute(predictions=["red", "table"], references=references) == {
        "vqa_accuracy": pytest.approx(0.45)
    }
