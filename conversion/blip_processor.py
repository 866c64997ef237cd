"""Processors that go with a converted BLIP: from a BERT vocabulary, or carried over between folders."""

from pathlib import Path

import transformers
from transformers import BertTokenizer, BlipImageProcessorPil

from hfvlm.conversion import images
from hfvlm.models.blip.configuration_blip import BlipConfig
from hfvlm.models.blip.processing_blip import BlipProcessor


PROMPT = "a picture of "  # what the published captioner starts every caption with
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def read_vocab(path: Path) -> dict[str, int]:
    """Words of a BERT vocabulary file, one a line, numbered from 0.

    Raises:
        ValueError: it lacks the special words that the tokenizer needs.
    """
    words = {word: i for i, word in enumerate(path.read_text(encoding="utf-8").splitlines())}
    lacking = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - words.keys()
    if lacking:
        raise ValueError(f"vocabulary {path} lacks {', '.join(sorted(lacking))}: it is not a BERT vocabulary")
    return words


def vocabulary_of(vocab: str | Path | None, beside: Path | None) -> dict[str, int] | None:
    """The vocabulary that is named, or the `vocab.txt` beside the checkpoint; None if there is none."""
    if vocab is not None:
        return read_vocab(Path(vocab))
    found = beside is not None and (beside / "vocab.txt").is_file()
    return read_vocab(beside / "vocab.txt") if found else None


def release_processor(words: dict[str, int], config: BlipConfig) -> BlipProcessor:
    """The original's: its BERT vocabulary with [DEC] and [ENC] appended, squared images, its prompt.

    Raises:
        ValueError: the vocabulary is not the checkpoint's.
    """
    text = config.text_config
    words = {**words, "[DEC]": text.bos_token_id, "[ENC]": text.vocab_size - 1}
    if sorted(words.values()) != list(range(text.vocab_size)):
        raise ValueError(
            f"the vocabulary has {len(words)} words with [DEC] and [ENC], the checkpoint {text.vocab_size}: "
            "give the vocab.txt that it was trained with"
        )
    tokenizer = BertTokenizer(
        vocab=words,
        bos_token="[DEC]",
        extra_special_tokens=["[ENC]"],
        model_max_length=text.max_position_embeddings,
    )
    return BlipProcessor(_images(config), tokenizer, prompt=PROMPT)


def carried_processor(folder: Path | None, config: BlipConfig) -> BlipProcessor | None:
    """The processor of a transformers folder, its tokenizer taught the decoder's start token; None if it has none.

    Raises:
        ValueError: the start token's id is beyond the tokenizer's words.
    """
    if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    text, tokenizer = config.text_config, BertTokenizer.from_pretrained(folder)
    for token, number in (("[DEC]", text.bos_token_id), ("[ENC]", text.vocab_size - 1)):
        if number == len(tokenizer):
            tokenizer.add_tokens([token], special_tokens=True)
    if text.bos_token_id >= len(tokenizer):
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} words; text_config.bos_token_id is {text.bos_token_id}"
        )
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(text.bos_token_id)
    tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)
    return BlipProcessor(_images(config, folder), tokenizer)


def in_tree_processor(processor: BlipProcessor) -> transformers.BlipProcessor:
    """The same images and words as transformers' own class, which has no prompt of its own."""
    return transformers.BlipProcessor(processor.image_processor, processor.tokenizer)


def _images(config: BlipConfig, folder: Path | None = None) -> BlipImageProcessorPil:
    stored = images.stored(BlipImageProcessorPil, folder) or BlipImageProcessorPil()
    return images.fitted(stored, config.vision_config.image_size)
