"""Processors that go with a converted CLIP: from the original's merges, or carried over between folders."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPTokenizer, PreTrainedTokenizerBase

from hfvlm.conversion.images import fitted, stored
from hfvlm.encoders.configuration import ClipTextTowerConfig
from hfvlm.models.clip.configuration_clip import ClipConfig
from hfvlm.models.clip.processing_clip import ClipProcessor


MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"  # as the original calls it
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """A letter for each byte, those that print as themselves first: the order in which CLIP's vocabulary has them."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printing), *(chr(256 + i) for i in range(256 - len(printing)))]


def read_merges(path: Path, vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges from the original's merges file: as many of them as the vocabulary takes.

    Args:
        path: text, gzipped or not: a line that says what it is, then two parts a line.
        vocab_size: of the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of merges, or too short for the vocabulary.
    """
    data = path.read_bytes()
    try:
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().splitlines()[1:]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary {path} is no list of merges: {error}") from error
    letters = byte_letters()
    letters += [f"{letter}</w>" for letter in letters]
    wanted = vocab_size - len(letters) - 2
    if wanted < 0:
        raise ValueError(f"the checkpoint has {vocab_size} words, fewer than letters alone: they are not CLIP's")
    merges = [tuple(line.split()) for line in lines if line.strip()][:wanted]
    if any(len(merge) != 2 for merge in merges):
        raise ValueError(f"vocabulary {path} is no list of merges: each line must have two parts")
    if len(merges) != wanted:
        raise ValueError(
            f"the checkpoint has {vocab_size} words, which takes {wanted} merges; {path} has {len(merges)}: give the "
            "vocabulary that it was trained with"
        )
    words = [*letters, *map("".join, merges), START, END]
    return {word: i for i, word in enumerate(words)}, merges


def processor_for(
    config: ClipConfig, beside: Path | None, vocab: Path | None = None, images: Mapping[str, Any] | None = None
) -> ClipProcessor | None:
    """The processor that goes with a model; None if there is no vocabulary.

    Args:
        beside: the folder that the checkpoint lies in; its tokenizer or merges and its image settings are taken.
        vocab: a merges file to take instead.
        images: settings of the image processor.

    Raises:
        FileNotFoundError, ValueError: as `read_merges`; a tokenizer with more words than the model.
    """
    tokenizer = _tokenizer(config, beside, vocab)
    if tokenizer is None:
        return None
    text = config.text_config
    full = isinstance(text, ClipTextTowerConfig) and (not text.causal or text.pooling == "last")
    return ClipProcessor(image_processor_for(config, beside, images), tokenizer, pad_to_max=full)


def image_processor_for(
    config: ClipConfig, beside: Path | None = None, images: Mapping[str, Any] | None = None
) -> CLIPImageProcessorPil:
    """CLIP's transform, or the one in a folder, for the size that the model takes."""
    own = stored(CLIPImageProcessorPil, beside) or CLIPImageProcessorPil()
    settings = fitted(own, config.vision_config.image_size).to_dict()
    return CLIPImageProcessorPil.from_dict({**settings, **(images or {})})


def in_tree_processor(processor: ClipProcessor) -> transformers.CLIPProcessor:
    """The same images and words as transformers' own class, which does not mend texts."""
    return transformers.CLIPProcessor(processor.image_processor, processor.tokenizer)


def _tokenizer(config: ClipConfig, beside: Path | None, vocab: Path | None) -> PreTrainedTokenizerBase | None:
    text = config.text_config
    words, limit = text.vocab_size, text.max_position_embeddings
    if vocab is None and beside is not None and any((beside / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(beside)
        if len(tokenizer) > words:
            raise ValueError(f"the tokenizer in {beside} has {len(tokenizer)} words, the checkpoint {words}")
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
        return tokenizer
    if vocab is None and beside is not None and (beside / MERGES_FILE).is_file():
        vocab = beside / MERGES_FILE
    if vocab is None:
        return None
    numbers, merges = read_merges(Path(vocab), words)
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=limit)
