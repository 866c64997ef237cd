"""CLIP inputs: centre-cropped pixels, and texts cleaned, cut and padded as the original does."""

import html
import re
import unicodedata
from typing import Any

from transformers import CLIPTokenizer

from hfvlm.two_tower_processing import TwoTowerProcessor


try:
    from ftfy import fix_text
except ImportError:  # a folder loaded where only transformers is: texts with broken encodings stay broken

    def fix_text(text: str) -> str:
        return text


#: start and end of text; contractions; runs of punctuation: what the original cuts a text into, words and digits aside
PIECES = re.compile(r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|(?P<run>(?:[^\w\s]|_)+)")
LITERAL = re.compile(r"(?:start|end)oftext\|>")


def mend(text: str) -> str:
    """Mends broken encodings and HTML entities, and makes any run of white space one space."""
    text = html.unescape(html.unescape(fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


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
        mend_texts: clean the texts of another tokenizer too, but for their case, as open_clip does.
        strip_sep_token: ids of the separator, which ends a BERT tokenizer's texts, become 0, as in CLIPA.

    Raises:
        ValueError: `strip_sep_token` with a tokenizer that has no separator.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        pad_to_max: bool = False,
        mend_texts: bool = False,
        strip_sep_token: bool = False,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, pad_to_max=pad_to_max, **kwargs)
        if strip_sep_token and self.tokenizer.sep_token_id is None:
            raise ValueError("strip_sep_token needs a tokenizer with a sep_token, as BERT's; this one has none")
        self.mend_texts = mend_texts
        self.strip_sep_token = strip_sep_token

    def clean(self, text: str) -> str:
        if self._reads_as_clip:
            return PIECES.sub(_apart, mend(text).lower())
        return mend(text) if self.mend_texts else text

    @property
    def padding_id(self) -> int:
        """The id that fills up shorter texts: CLIP's is 0, which is a word too."""
        return 0 if self._reads_as_clip else self.tokenizer.pad_token_id

    @property
    def _reads_as_clip(self) -> bool:
        """Told by the class: what CLIP tokenizers call their padding differs, and does not count."""
        return isinstance(self.tokenizer, CLIPTokenizer)

    def _encode(self, *args: Any) -> dict[str, list[list[int]]]:
        encoded = super()._encode(*args)
        if self.strip_sep_token:
            end = self.tokenizer.sep_token_id
            encoded["input_ids"] = [[0 if token == end else token for token in row] for row in encoded["input_ids"]]
        return encoded
