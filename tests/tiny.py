"""Tiny random models and processors, one a registered architecture, for every test that needs one.

The model is the architecture's own `tiny` variant; the processor gets a word-level vocabulary of the same size.
"""

import torch
from transformers import BertTokenizer, BlipImageProcessorPil

from hfvlm.registry import ARCHITECTURES, find, load


WORDS = (
    "a the dog cat man woman boy girl two three red blue black white brown green runs sits stands jumps plays in on "
    "with of and is are street grass water snow beach ball frisbee bike tree sky house field picture photo near big "
    "small young old wearing shirt"
).split()


def tiny_config(model_type: str, **overrides):
    """The architecture's `tiny` configuration without dropout, so that two runs are alike."""
    text = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return load(find(model_type).config).variant("tiny", text_config=text, **overrides)


def tiny_model(model_type: str, auto_class: str, seed: int = 0, **overrides) -> torch.nn.Module:
    """A random model of one head, in evaluation mode; weights large enough that outputs differ between inputs."""
    torch.manual_seed(seed)
    model = load(find(model_type).heads[auto_class])(tiny_config(model_type, **overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            elif "norm" not in name:
                parameter.normal_(0, 0.05)
    return model


def tiny_tokenizer(size: int = 64) -> BertTokenizer:
    """A BERT tokenizer of `size` words: six special tokens ([DEC] is 5), `WORDS`, and fillers."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *WORDS]
    words += [f"word{i}" for i in range(size - len(words))]
    return BertTokenizer(
        vocab={word: i for i, word in enumerate(words[:size])}, bos_token="[DEC]", model_max_length=40
    )


def tiny_processor(model_type: str, **kwargs):
    """The architecture's processor for its tiny model."""
    config = tiny_config(model_type)
    size = config.vision_config.image_size
    image_processor = BlipImageProcessorPil(size={"height": size, "width": size})
    return load(find(model_type).processor)(image_processor, tiny_tokenizer(config.text_config.vocab_size), **kwargs)


#: every (model_type, Auto class) that is registered
HEADS = [(row.model_type, auto) for row in ARCHITECTURES.values() for auto in row.heads]
