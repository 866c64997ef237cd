"""Pretrains a small ViT by masked patch prediction on a folder of photos, then trains it to tell their classes.

    python examples/train_vit.py --images flowers --output vit
    python examples/train_vit.py --images flowers --output vit-fresh --pretraining-epochs 0

`--images` has a sub-folder a class. Every fifth photo of a class is held out; pretraining sees neither these nor any
label. Both stages are the stock `Trainer`. The second command is what the first is to be compared with.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments, ViTImageProcessorPil

from hfvlm import VitConfig, VitForImageClassification, VitForMaskedImageModeling, VitProcessor
from hfvlm.images import images_in
from hfvlm.pixels import PixelLoader


HELD_OUT = 5  # one photo in so many


def read_folder(images: Path) -> tuple[list[dict], list[dict], list[str]]:
    """Rows `{"path", "label"}` to learn and to test on, and the names of the classes.

    Raises:
        SystemExit: there are fewer than two classes of five photos.
    """
    names = sorted(folder.name for folder in images.iterdir() if folder.is_dir() and next(images_in(folder), None))
    rows = [[{"path": path, "label": i} for path in images_in(images / name)] for i, name in enumerate(names)]
    if len(names) < 2 or min(map(len, rows)) < HELD_OUT:
        raise SystemExit(f"--images {images}: two sub-folders or more are needed, of {HELD_OUT} photos or more each")
    learned = [row for group in rows for i, row in enumerate(group) if i % HELD_OUT]
    tested = [row for group in rows for row in group[::HELD_OUT]]
    return learned, tested, names


class Photos:
    """Collates rows: reads their photos, turns half of them round in training, adds labels if wanted."""

    def __init__(self, processor: VitProcessor, labels: bool):
        self.load, self.labels, self.flip = PixelLoader(processor.image_processor), labels, True

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = self.load([row["path"] for row in rows])["pixel_values"]
        if self.flip:
            turned = torch.rand(len(pixels)) < 0.5
            pixels = torch.where(turned[:, None, None, None], pixels.flip(-1), pixels)
        labels = {"labels": torch.tensor([row["label"] for row in rows])} if self.labels else {}
        return {"pixel_values": pixels, **labels}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of photos whose best class is theirs."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def train(model: nn.Module, rows: list[dict], photos: Photos, epochs: float, args: argparse.Namespace, name: str):
    """A stage; returns its `Trainer`."""
    settings = TrainingArguments(
        output_dir=str(args.output / name),
        num_train_epochs=epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        weight_decay=0.05,
        warmup_steps=0.1,  # of all steps
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=args.seed,
    )
    trainer = Trainer(
        model, settings, train_dataset=rows, data_collator=photos, compute_metrics=accuracy if photos.labels else None
    )
    trainer.train()
    return trainer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder with a sub-folder of photos a class")
    parser.add_argument("--output", type=Path, required=True, help="folder for both models")
    parser.add_argument("--variant", default="vit_ti_16", help="published size; image and patch size are the next")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side")
    parser.add_argument("--patch-size", type=int, default=8, help="pixels a side")
    parser.add_argument("--pretraining-epochs", type=float, default=100)
    parser.add_argument("--epochs", type=float, default=30, help="of classification")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    learned, tested, names = read_folder(args.images)
    tower = {"image_size": args.image_size, "patch_size": args.patch_size}
    config = VitConfig.variant(args.variant, vision_config=tower, id2label=dict(enumerate(names)), label_smoothing=0.1)
    config.label2id = {name: i for i, name in enumerate(names)}
    processor = VitProcessor(ViTImageProcessorPil(size={"height": args.image_size, "width": args.image_size}))
    torch.manual_seed(args.seed)

    pretrained = None
    if args.pretraining_epochs:
        model = VitForMaskedImageModeling(config)
        photos = Photos(processor, labels=False)
        trainer = train(model, learned, photos, args.pretraining_epochs, args, "masked")
        photos.flip = False
        print("masked patches:", json.dumps({"held_out_loss": trainer.evaluate(tested)["eval_loss"]}), flush=True)
        pretrained = args.output / "masked"
        model.save_pretrained(pretrained)
        processor.save_pretrained(pretrained)

    classifier = VitForImageClassification if pretrained is None else VitForImageClassification.from_pretrained
    model = classifier(config if pretrained is None else pretrained)
    photos = Photos(processor, labels=True)
    trainer = train(model, learned, photos, args.epochs, args, "classes")
    photos.flip = False
    model.save_pretrained(args.output / "classes")
    processor.save_pretrained(args.output / "classes")
    most = Counter(row["label"] for row in tested).most_common(1)[0][1] / len(tested)
    result = {"accuracy": trainer.evaluate(tested)["eval_accuracy"], "always_the_commonest_class": most}
    print("classes:", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
