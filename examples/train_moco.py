"""Pretrains an image tower without labels, by MoCo v2, and asks what it has learned by a linear probe.

    python examples/train_moco.py --data flickr8k --output moco

The probe's classes are words: a photo belongs to a class if most of its captions name that class and no other. A
linear classifier on the pretrained tower's vectors is compared with one on a tower that was never trained (but has
seen the photos to fit its batch norm), and with always saying the most frequent class.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hfvlm import MocoConfig, MocoForPreTraining, MocoModel, MocoProcessor
from hfvlm.data.captions import read_captions
from hfvlm.images import open_image
from hfvlm.models.moco.processing_moco import image_processor_for


class Photos(Dataset):
    """The photos of `rows`, opened when they are asked for."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"image": open_image(self.rows[index]["image"])}


class ViewCollator:
    """Photos to two random views each."""

    def __init__(self, processor: MocoProcessor):
        self.processor = processor

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=[item["image"] for item in items], views=True))


def label(captions: list[str], classes: dict[str, set[str]], named_by: int) -> str | None:
    """The class that `named_by` captions name and no other with it; None if there is no such class."""
    named = Counter()
    for caption in captions:
        words = set(re.findall(r"[a-z]+", caption.lower()))
        found = [name for name, synonyms in classes.items() if words & synonyms]
        if len(found) == 1:
            named[found[0]] += 1
    best = named.most_common(1)
    return best[0][0] if best and best[0][1] >= named_by else None


def pretrain(model: MocoForPreTraining, processor: MocoProcessor, rows: list[dict], recipe: dict, output: Path):
    """MoCo with the stock Trainer; resumes from its last checkpoint if there is one."""
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=recipe["epochs"],
        per_device_train_batch_size=recipe["batch_size"],
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        warmup_steps=recipe["warmup_steps"],
        lr_scheduler_type="cosine",
        dataloader_drop_last=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        save_total_limit=1,
        logging_steps=50,
        report_to=[],
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Photos(rows), data_collator=ViewCollator(processor))
    trainer.train(resume_from_checkpoint=any(output.glob("checkpoint-*")) or None)


@torch.inference_mode()
def vectors(tower: MocoModel, processor: MocoProcessor, rows: list[dict]) -> torch.Tensor:
    """The tower's vector of each photo, `[photos, feature_size]`."""
    found = []
    for start in range(0, len(rows), 128):
        images = [open_image(row["image"]) for row in rows[start : start + 128]]
        pixels = processor(images=images)["pixel_values"].to(tower.device)
        found.append(tower(pixels).pooler_output.cpu())
    return torch.cat(found)


def accuracy(classifier: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> float:
    return (classifier(features).argmax(1) == labels).float().mean().item()


def fit(features: torch.Tensor, labels: torch.Tensor, classes: int, weight_decay: float) -> nn.Linear:
    """Logistic regression by L-BFGS, from zero."""
    classifier = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(features), labels)
        loss = loss + weight_decay / 2 * classifier.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return classifier


def probe(tower: MocoModel, processor: MocoProcessor, splits: dict[str, list[dict]], recipe: dict) -> float:
    """Share of the test photos that a linear classifier on the tower's vectors names rightly."""
    names = list(recipe["classes"])
    features = {split: vectors(tower, processor, rows) for split, rows in splits.items()}
    labels = {split: torch.tensor([names.index(row["label"]) for row in rows]) for split, rows in splits.items()}
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    features = {split: (value - mean) / std for split, value in features.items()}
    fits = [fit(features["train"], labels["train"], len(names), decay) for decay in recipe["weight_decay"]]
    best = max(fits, key=lambda classifier: accuracy(classifier, features["val"], labels["val"]))
    return accuracy(best, features["test"], labels["test"])


@torch.no_grad()
def fit_batch_norm(tower: MocoModel, processor: MocoProcessor, rows: list[dict]) -> None:
    """Lets an untrained tower's batch norms see photos: their statistics become the mean over the batches."""
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    tower.train()
    for start in range(0, len(rows) - 127, 128):
        images = [open_image(row["image"]) for row in rows[start : start + 128]]
        tower(processor(images=images)["pixel_values"])
    tower.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/flickr8k_moco.yaml")
    parser.add_argument("--photos", type=int, help="only so many of each split, to try it")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    classes = {name: set(words.split()) for name, words in recipe["probe"]["classes"].items()}
    rows, labelled = {}, {}
    for split in ("train", "val", "test"):
        rows[split] = read_captions(args.data / "captions.jsonl", split)[: args.photos]
        for row in rows[split]:
            row["label"] = label(row["captions"], classes, recipe["probe"]["named_by"])
        labelled[split] = [row for row in rows[split] if row["label"] is not None]

    torch.manual_seed(0)
    config = MocoConfig(**recipe["model"])
    processor = MocoProcessor(image_processor_for(config.vision_config.image_size), recipe["augmentation"])
    untrained = MocoModel(config)
    fit_batch_norm(untrained, processor, labelled["train"])
    most_frequent = Counter(row["label"] for row in labelled["train"]).most_common(1)[0][0]
    result = {
        "photos": {split: len(found) for split, found in labelled.items()},
        "most frequent class": sum(row["label"] == most_frequent for row in labelled["test"]) / len(labelled["test"]),
        "untrained tower": probe(untrained, processor, labelled, recipe["probe"]),
    }
    print(json.dumps(result), flush=True)

    model = MocoForPreTraining(config)
    print(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} parameters learn", flush=True)
    pretrain(model, processor, rows["train"], recipe["training"], args.output / "training")
    model.save_pretrained(args.output / "model")
    processor.save_pretrained(args.output / "model")
    tower = MocoModel.from_pretrained(args.output / "model")
    result["pretrained tower"] = probe(tower, processor, labelled, recipe["probe"])
    print(json.dumps(result), flush=True)
    (args.output / "probe.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
