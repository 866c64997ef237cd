"""ALBEF inputs: squared pixels, and texts that start with [CLS] and have no end token."""

from hfvlm.two_tower_processing import TwoTowerProcessor


class AlbefProcessor(TwoTowerProcessor):
    """Images to pixels, texts to ids.

    Args:
        image_processor: a stock one; `BlipImageProcessorPil` is pixel-exact with the original's evaluation.
        tokenizer: a BERT tokenizer; its end token ([SEP]) is left out, as the original does. An answer ends with it:
            write it behind the answer's text.
    """

    def ids(self, texts: list[str], limit: int | None) -> list[list[int]]:
        rows = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [[self.tokenizer.cls_token_id, *row][:limit] for row in rows]
