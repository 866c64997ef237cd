"""Caption metrics: BLEU-1 to 4, CIDEr and ROUGE-L of pycocoevalcap, on words that are made without Java."""

from hfvlm.evaluation.base import STRINGS, Metric
from hfvlm.evaluation.words import words


try:
    import evaluate
    from pycocoevalcap.bleu.bleu import Bleu as BleuScorer
    from pycocoevalcap.cider.cider import Cider as CiderScorer
    from pycocoevalcap.rouge.rouge import Rouge as RougeScorer
except ImportError as error:
    raise ImportError("caption metrics need pycocoevalcap: pip install 'hfvlm[evaluate]'") from error


class CaptionMetric(Metric):
    """A metric of captions against any number of references each, by the words that `words` makes of them."""

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        answers = {row: [words(caption)] for row, caption in enumerate(predictions)}
        return self._score({row: [words(text) for text in texts] for row, texts in enumerate(references)}, answers)

    def _score(self, references: dict[int, list[str]], answers: dict[int, list[str]]) -> dict[str, float]:
        raise NotImplementedError


class Bleu(CaptionMetric):
    """BLEU-1 to 4 of the whole collection, against the reference of the closest length: `bleu_1` to `bleu_4`, 0 to 1.

    ```python
    >>> metric("bleu").compute(predictions=["a dog runs"], references=[["a dog runs", "the dog is running"]])
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-1 to 4, as the COCO caption evaluation computes it.",
            citation="Papineni et al., 2002: BLEU, a method for automatic evaluation of machine translation",
            inputs_description="predictions: captions; references: a list of captions for each.",
            features=STRINGS,
        )

    def _score(self, references: dict[int, list[str]], answers: dict[int, list[str]]) -> dict[str, float]:
        scores, _ = BleuScorer(4).compute_score(references, answers, verbose=0)
        return {f"bleu_{n}": float(score) for n, score in enumerate(scores, 1)}


class Cider(CaptionMetric):
    """CIDEr-D, 0 to 10. Rare words count more, and how rare they are is learnt from the references: a single photo, or
    photos with the same references, score 0.

    ```python
    >>> metric("cider").compute(predictions=captions, references=references)["cider"]
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="CIDEr-D, as the COCO caption evaluation computes it.",
            citation="Vedantam et al., 2015: https://arxiv.org/abs/1411.5726",
            inputs_description="predictions: captions; references: a list of captions for each.",
            features=STRINGS,
        )

    def _score(self, references: dict[int, list[str]], answers: dict[int, list[str]]) -> dict[str, float]:
        return {"cider": float(CiderScorer().compute_score(references, answers)[0])}


class RougeL(CaptionMetric):
    """ROUGE-L, 0 to 1: the longest common subsequence with the references, recall weighing more (beta 1.2).

    ```python
    >>> metric("rouge_l").compute(predictions=captions, references=references)["rouge_l"]
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-L, as the COCO caption evaluation computes it.",
            citation="Lin, 2004: ROUGE, a package for automatic evaluation of summaries",
            inputs_description="predictions: captions; references: a list of captions for each.",
            features=STRINGS,
        )

    def _score(self, references: dict[int, list[str]], answers: dict[int, list[str]]) -> dict[str, float]:
        return {"rouge_l": float(RougeScorer().compute_score(references, answers)[0])}
