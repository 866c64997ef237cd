"""CLIP inputs: centre-cropped pixels, and texts cleaned, cut and padded as the original does."""

import html
import re
import unicodedata

from hfvlm.two_tower_processing import TwoTowerProcessor


try:
    from ftfy import fix_text
except ImportError:  # a folder loaded where only transformers is: texts with broken encodings stay broken

    def fix_text(text: str) -> str:
        return text


#: start and end of text; contractions; runs of punctuation: what the original cuts a text into, words and digits aside
PIECES = re.compile(r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|(?P<run>(?:[^\w\s]|_)+)")
LITERAL = re.compile(r"(?:start|end)oftext\|>")


def clean(text: str) -> str:
    """Mends broken encodings and HTML entities, makes any run of white space one space, and lowers the case."""
    text = html.unescape(html.unescape(fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def _apart(piece: re.Match) -> str:
    """A piece with a space where the stock tokenizer would not cut as the original does.

    That finds literal special tokens anywhere, the original not where punctuation goes before and takes their "<|";
    it joins a letter and the accent behind it, where the original lowers a text after that was done.
    """
    run = piece["run"]
    if not run:
        return piece[0]
    before = " " if unicodedata.combining(run[0]) else ""
    after = " " if run.endswith("<|") and LITERAL.match(piece.string, piece.end()) else ""
    return before + run + after


class ClipProcessor(TwoTowerProcessor):
    """Images to pixels, texts to ids.

    Args:
        image_processor: a stock one; the pixels of `CLIPImageProcessorPil` are exactly the original's, but where the
            middle is half a pixel off, it crops at the one before and the original at the even one.
        tokenizer: CLIP's, whose texts are cleaned first, or the tokenizer of another text tower.
        pad_to_max: pad every text to the model's full length unless a call says otherwise.
    """

    def clean(self, text: str) -> str:
        return PIECES.sub(_apart, clean(text)) if self._ends_as_clip else text

    @property
    def padding_id(self) -> int:
        """The id that fills up shorter texts: CLIP's is 0, which is a word too."""
        return 0 if self._ends_as_clip else self.tokenizer.pad_token_id

    @property
    def _ends_as_clip(self) -> bool:
        """CLIP's vocabulary has no padding token of its own: the stock tokenizer pads with the end of text."""
        return self.tokenizer.eos_token is not None and self.tokenizer.pad_token == self.tokenizer.eos_token
