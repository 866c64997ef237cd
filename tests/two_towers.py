"""A tiny random CLIP of transformers' own, with its processor: what works with it works with any two towers."""

from pathlib import Path

import torch
from tiny import WORDS
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer


def stock_clip(seed: int = 0) -> CLIPModel:
    """A model whose outputs differ between inputs."""
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 1200, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(seed)
    config = CLIPConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config={**text, "pad_token_id": 1},
        projection_dim=20,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model


def stock_processor() -> CLIPProcessor:
    """Its processor; the tokenizer knows `WORDS` as wholes and everything else by its letters."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces.append(parts[0])
    pieces, merges = list(dict.fromkeys(pieces)), list(dict.fromkeys(merges))
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=16)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPProcessor(image_processor, tokenizer)


def save_stock_clip(folder: Path, seed: int = 0) -> str:
    """The folder with both."""
    stock_clip(seed).save_pretrained(folder)
    stock_processor().save_pretrained(folder)
    return str(folder)
