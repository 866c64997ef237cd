"""VQA accuracy: an answer is as right as the people who gave it are many, after the official normalisation."""

import re
from collections.abc import Sequence

import evaluate

from hfvlm.evaluation.base import STRINGS, Metric


_NUMBERS = "none zero one two three four five six seven eight nine ten".split()
NUMBERS = {word: str(max(number - 1, 0)) for number, word in enumerate(_NUMBERS)}
ARTICLES = frozenset(["a", "an", "the"])

#: contractions of one ending that may be written without their apostrophe
_SHORT = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
#: those of two, which may lack one of their apostrophes
_LONG = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
""".split()


def _contractions() -> dict[str, str]:
    known = {word.replace("'", ""): word for word in _SHORT}
    for word in _LONG:
        start, middle, end = word.split("'")
        known[f"{start}{middle}'{end}"] = known[f"{start}'{middle}{end}"] = word
    # the official table's own ways
    known.update({"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"})
    known.update({"yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've"})
    return known


CONTRACTIONS = _contractions()

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def strip_punctuation(answer: str) -> str:
    """An answer without punctuation but for apostrophes, colons and decimal points.

    A mark becomes a space, or nothing where it is next to a space, or where the answer has a comma in a number.
    """
    joined = _COMMA_IN_NUMBER.search(answer) is not None
    result = answer
    for mark in _PUNCTUATION:
        result = result.replace(mark, "" if joined or f"{mark} " in answer or f" {mark}" in answer else " ")
    # 32 at most, as in the official code, which passes a flag where the number of replacements goes
    return _PERIOD.sub("", result, count=32)


def normalize_answer(answer: str) -> str:
    """An answer as it is compared.

    In lower case, without punctuation and articles, with numbers to ten in digits and contractions' apostrophes.
    """
    found = strip_punctuation(_on_one_line(answer)).lower().split()
    found = [word for word in (NUMBERS.get(word, word) for word in found) if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in found)


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """How right an answer is, 0 to 1.

    With one reference: whether the two are the same once normalised. With several: the mean over all choices of
    leaving out one reference of `min(1, equal ones / 3)`, so that with 10 people an answer that four gave is wholly
    right. As in the official code, answers are normalised only where the references differ: where all people wrote the
    same, that is what the answer must be to the letter.

    Args:
        references: what people answered. Of two or three that agree with an answer it is right to a third or two
            thirds only.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("references is empty: an answer needs at least one to be compared with")
    answer, references = _on_one_line(answer), [_on_one_line(reference) for reference in references]
    if len(references) == 1 or len(set(references)) > 1:
        answer, references = normalize_answer(answer), [normalize_answer(reference) for reference in references]
    equal = [answer == reference for reference in references]
    if len(equal) == 1:
        return float(equal[0])
    return sum(min(1.0, (sum(equal) - own) / 3) for own in equal) / len(equal)


def _on_one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


class VqaAccuracy(Metric):
    """VQA accuracy, 0 to 1, as of VQA v2's evaluation; see `answer_accuracy`.

    ```python
    >>> metric("vqa_accuracy").compute(predictions=["two"], references=[["2"]])
    {'vqa_accuracy': 1.0}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="VQA accuracy with the official normalisation of answers.",
            citation="Goyal et al., 2017: https://arxiv.org/abs/1612.00837",
            inputs_description="predictions: answers; references: a list of answers for each, 10 people's or one.",
            features=STRINGS,
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = [answer_accuracy(answer, given) for answer, given in zip(predictions, references, strict=True)]
        return {"vqa_accuracy": sum(scores) / len(scores)}
