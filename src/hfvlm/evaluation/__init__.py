"""How good a model is: metrics, zero-shot classification, retrieval, and evaluators of tasks."""

import difflib
import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hfvlm.evaluation.base import Metric


#: name of a metric -> its class
METRICS = {
    "bleu": "hfvlm.evaluation.captions.Bleu",
    "cider": "hfvlm.evaluation.captions.Cider",
    "rouge_l": "hfvlm.evaluation.captions.RougeL",
    "vqa_accuracy": "hfvlm.evaluation.vqa.VqaAccuracy",
    "retrieval_recall": "hfvlm.evaluation.recall.RetrievalRecall",
}


def metric(name: str, **kwargs: Any) -> "Metric":
    """A metric by its name: an `evaluate.Metric` that needs neither network nor Java.

    ```python
    >>> hfvlm.evaluation.metric("vqa_accuracy").compute(predictions=["two"], references=[["2"]])
    {'vqa_accuracy': 1.0}
    ```

    Args:
        name: one of `METRICS`.
        kwargs: what `evaluate.Metric` takes, e.g. `num_process`.

    Raises:
        ValueError: there is no metric of that name (names the nearest).
        ImportError: the packages are missing that it is made of.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(str(name), METRICS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no metric {name!r} (there are {', '.join(METRICS)}){hint}")
    module, _, cls = METRICS[name].rpartition(".")
    return getattr(importlib.import_module(module), cls)(**kwargs)
