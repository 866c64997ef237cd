"""What the metrics here have in common: `evaluate.Metric`s that need no network, and refuse what they cannot score."""

import os
from collections.abc import Sequence
from typing import Any


try:
    import evaluate
except ImportError as error:
    raise ImportError("metrics need evaluate and pycocoevalcap: pip install 'hfvlm[evaluate]'") from error
from datasets import Features, List, Value


#: one prediction with any number of references
STRINGS = Features({"predictions": Value("string"), "references": List(Value("string"))})


class Metric(evaluate.Metric):
    """A metric whose input is checked as it is added: a bad row is named, and nothing is computed.

    ```python
    >>> scorer.compute(predictions=[...], references=[...])
    ```

    A subclass says what goes in (`_info`), what a row must be (`_check_row`), and what comes out (`_compute`). Rows
    are kept in memory; for several processes pass what `evaluate.load` takes, e.g. `num_process`, `process_id`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(*args, **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds a row; errors as of `add_batch`."""
        self._check_row(prediction, reference, "")
        evaluate.Metric.add(self, prediction=prediction, reference=reference, **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds rows.

        Raises:
            ValueError: no rows, more of one than of the other, or a row that cannot be scored, by its number.
        """
        for name, column in (("predictions", predictions), ("references", references)):
            if column is None or isinstance(column, (str, bytes, os.PathLike)) or not hasattr(column, "__len__"):
                raise ValueError(f"{name} must be a list, a row each; got {type(column).__name__}")
        if len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions and {len(references)} references: each prediction needs its own"
            )
        if not len(predictions):
            raise ValueError("predictions and references are empty: there is nothing to score")
        for row, (prediction, reference) in enumerate(zip(predictions, references)):
            self._check_row(prediction, reference, f"[{row}]")
        evaluate.Metric.add_batch(self, predictions=predictions, references=references, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """The scores of all rows: of those given here and of those added before.

        Raises:
            ValueError: as `add_batch`; or there are no rows at all.
        """
        if predictions is None and references is None and not len(self):
            raise ValueError("there is nothing to score: pass predictions and references, or add some first")
        return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)

    def _check_row(self, prediction: Any, reference: Any, row: str) -> None:
        """Raises a ValueError for a row that cannot be scored; here: that is not a text and a list of texts."""
        if not isinstance(prediction, str):
            raise ValueError(f"predictions{row} must be a string, got {type(prediction).__name__}")
        if isinstance(reference, str) or not isinstance(reference, Sequence):
            raise ValueError(f"references{row} must be a list of strings, got {type(reference).__name__}")
        if not reference:
            raise ValueError(f"references{row} is empty: a prediction needs at least one to be compared with")
        for text in reference:
            if not isinstance(text, str):
                raise ValueError(f"references{row} must hold strings only, got {type(text).__name__}")
