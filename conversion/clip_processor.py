"""Processors that go with a converted CLIP: from the original's merges, or carried over between folders."""

import gzip
import json
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
WORDS = 49408  # of the published models, for whose vocabulary that file is
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
    config: ClipConfig,
    beside: Path | None,
    vocab: str | Path | None = None,
    images: Mapping[str, Any] | None = None,
    texts: Mapping[str, Any] | None = None,
) -> ClipProcessor | None:
    """The processor that goes with a model; None if there is no vocabulary.

    Args:
        beside: the folder that the checkpoint lies in; its tokenizer, or for a model of the published vocabulary
            its merges, and its image settings are taken.
        vocab: a merges file, or a folder with a tokenizer, to take instead.
        images: settings of the image processor.
        texts: settings of the processor, for texts that are read by another tokenizer than CLIP's.

    Raises:
        FileNotFoundError, ValueError: as `read_merges`; there is no tokenizer in `vocab`; a tokenizer with more words
            than the model; merges for a model of another tokenizer.
    """
    tokenizer = _tokenizer(config, beside, None if vocab is None else Path(vocab), bool(texts))
    if tokenizer is None:
        return None
    text = config.text_config
    full = isinstance(text, ClipTextTowerConfig) and (not text.causal or text.pooling == "last")
    return ClipProcessor(image_processor_for(config, beside, images), tokenizer, pad_to_max=full, **(texts or {}))


def own_processor(config: ClipConfig, beside: Path | None) -> ClipProcessor | None:
    """The processor in an hfvlm folder, its images of the model's size; None if it has no tokenizer."""
    if not _has_tokenizer(beside):
        return None
    processor = ClipProcessor.from_pretrained(beside)
    processor.image_processor = image_processor_for(config, beside)
    return processor


def what_is_missing(config: ClipConfig) -> str:
    """What to do about a model that was written without a tokenizer."""
    words = config.text_config.vocab_size
    if words == WORDS:
        return (
            f"no tokenizer written: texts need OpenAI's {MERGES_FILE}, in the folder clip/ of "
            "https://github.com/openai/CLIP: lay it beside the checkpoint, or give it, or a folder with a "
            "tokenizer.json, as --vocab"
        )
    return (
        f"no tokenizer written: {words} words are not OpenAI's: give the folder with the tokenizer.json of the model "
        "(the one that open_clip's hf_tokenizer_name names), or its merges, as --vocab"
    )


def image_processor_for(
    config: ClipConfig, beside: Path | None = None, images: Mapping[str, Any] | None = None
) -> CLIPImageProcessorPil:
    """CLIP's transform, or the one in a folder, for the size that the model takes."""
    own = stored(CLIPImageProcessorPil, beside) or CLIPImageProcessorPil()
    settings = fitted(own, config.vision_config.image_size).to_dict()
    return CLIPImageProcessorPil.from_dict({**settings, **(images or {})})


def in_tree_processor(processor: ClipProcessor) -> transformers.CLIPProcessor:
    """The same images and words as transformers' own class, which does not mend texts.

    Raises:
        ValueError: ids would differ.
    """
    if processor.strip_sep_token:
        raise ValueError("transformers' CLIP has no place for the processor's strip_sep_token=True")
    return transformers.CLIPProcessor(processor.image_processor, processor.tokenizer)


def _has_tokenizer(folder: Path | None) -> bool:
    return folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer(
    config: ClipConfig, beside: Path | None, vocab: Path | None, other: bool
) -> PreTrainedTokenizerBase | None:
    """As `processor_for`; `other`: than CLIP's."""
    text = config.text_config
    words, limit = text.vocab_size, text.max_position_embeddings
    folder = beside if vocab is None else vocab
    if _has_tokenizer(folder):
        tokenizer = _stock_tokenizer(folder, other or not isinstance(text, ClipTextTowerConfig))
        if len(tokenizer) > words:
            raise ValueError(f"the tokenizer in {folder} has {len(tokenizer)} words, the checkpoint {words}")
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
        return tokenizer
    if vocab is not None and vocab.is_dir():
        raise FileNotFoundError(f"vocab {vocab} has no tokenizer: expected {' or '.join(TOKENIZER_FILES)}")
    if vocab is not None and other:
        raise ValueError(
            f"vocab {vocab} is no folder: open_clip's hf_tokenizer_name says that texts are not read by CLIP's "
            "merges; give the folder of that tokenizer"
        )
    if vocab is None and not other and words == WORDS and beside is not None and (beside / MERGES_FILE).is_file():
        vocab = beside / MERGES_FILE
    if vocab is None:
        return None
    numbers, merges = read_merges(vocab, words)
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=limit)


def _stock_tokenizer(folder: Path, other: bool) -> PreTrainedTokenizerBase:
    """A folder's tokenizer. CLIP's that pads with a word ("!") no longer does: it would read the word as padding."""
    kind = AutoTokenizer if other or (folder / "tokenizer_config.json").is_file() else CLIPTokenizer
    tokenizer = kind.from_pretrained(folder)
    if not isinstance(tokenizer, CLIPTokenizer) or tokenizer.pad_token_id != 0:
        return tokenizer
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return CLIPTokenizer(
        vocab=tokenizer.get_vocab(), merges=[*map(tuple, merges)], model_max_length=tokenizer.model_max_length
    )
