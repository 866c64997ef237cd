"""What all metrics share: found by name, computed offline, bad input refused by row."""

import evaluate
import pytest

from hfvlm.evaluation import METRICS, metric


TEXTS = [name for name in METRICS if name != "retrieval_recall"]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_one_of_evaluate(name):
    scorer = metric(name)
    assert isinstance(scorer, evaluate.Metric)
    assert scorer.name == name
    assert scorer.description and scorer.inputs_description


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"no metric 'vqa_acuracy' \(there .*\); did you mean 'vqa_accuracy'"):
        metric("vqa_acuracy")
    with pytest.raises(ValueError, match=r"no metric 'zzz' \(there are bleu, .*recall\)$"):
        metric("zzz")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "predictions and references are empty"),
        (["a"], [["a"], ["b"]], "1 predictions and 2 references"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty"),
        (["a", 2], [["a"], ["b"]], r"predictions\[1\] must be a string, got int"),
        (["a"], ["a"], r"references\[0\] must be a list of strings, got str"),
        (["a"], [["a", None]], r"references\[0\] must hold strings only, got NoneType"),
        ("a", [["a"]], "predictions must be a list, a row each; got str"),
        (["a"], None, "references must be a list, a row each; got NoneType"),
        (None, None, "there is nothing to score"),
    ],
)
def test_bad_input(name, predictions, references, message):
    scorer = metric(name)
    with pytest.raises(ValueError, match=message):
        scorer.compute(predictions=predictions, references=references)
    assert len(scorer) == 0, "a refused row leaves nothing behind"


def test_a_bad_row_is_refused_as_it_is_added():
    scorer = metric("bleu")
    with pytest.raises(ValueError, match="references is empty"):
        scorer.add(prediction="a", reference=[])
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        scorer.add_batch(predictions=["a", "b"], references=[["a"], []])


def test_a_metric_can_be_used_again():
    scorer = metric("vqa_accuracy")
    scorer.add(prediction="red", reference=["red"])
    assert scorer.compute() == {"vqa_accuracy": 1.0}
    assert scorer.compute(predictions=["red"], references=[["blue"]]) == {"vqa_accuracy": 0.0}
