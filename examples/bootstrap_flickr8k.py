"""CapFilt on Flickr8k: captions made wrong on purpose, and the captioner and the filter that clean them.

    python examples/bootstrap_flickr8k.py --data flickr8k --efficientnet efficientnet-lite0.pth \
        --minilm minilm-folder --output bootstrap

A part of the training photos keeps its captions, as human ones; of the others, "the web", many are shuffled. A
captioner learns from all of it; copies of it become captioner and filter, tuned on the human part; one round follows
(section 3.3 of BLIP, https://arxiv.org/abs/2201.12086). Which captions are wrong is known, so the filter's precision
and recall are. At last a captioner that starts anew on the kept texts is compared with the one that learned from the
noisy ones for as many epochs.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from pyarrow import parquet
from train_blip import TensorPairs
from train_captioner import (
    LITE,
    SPECIAL,
    CachedMaps,
    CachedTower,
    MapCollator,
    build_model,
    cache_maps,
    judging_tokenizer,
    load_rows,
    save,
    train,
    vocabulary,
)
from transformers import BlipImageProcessorPil

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor, pipeline
from hfvlm.data.bootstrap import CapFilt, Recipe, bootstrap
from hfvlm.data.shards import Counts, ShardFolder
from hfvlm.data.web import open_rows
from hfvlm.evaluation.tasks import score_captions


#: of every training here; the epochs are options
STAGE = {"batch_size": 64, "learning_rate": 5.0e-4, "weight_decay": 0.05, "warmup_ratio": 0.05}
FILTER = {**STAGE, "learning_rate": 3.0e-4}
TUNING = {**STAGE, "learning_rate": 1.0e-4}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def corrupt(rows: list[dict], share: float, generator: torch.Generator) -> tuple[list[dict], set[tuple[int, str]]]:
    """The rows with a share of their captions passed around among themselves.

    Returns:
        the rows, and (row, caption) of every caption that still describes its photo.
    """
    slots = [(row, place) for row in range(len(rows)) for place in range(len(rows[row]["captions"]))]
    chosen = torch.randperm(len(slots), generator=generator)[: round(share * len(slots))].tolist()
    noisy = [{**row, "captions": list(row["captions"])} for row in rows]
    wrong = set()
    for to, by in zip(chosen, chosen[1:] + chosen[:1]):
        (row, place), (other, taken) = slots[to], slots[by]
        noisy[row]["captions"][place] = rows[other]["captions"][taken]
        if row != other:
            wrong.add((row, place))
    return noisy, {(row, noisy[row]["captions"][place]) for row, place in slots if (row, place) not in wrong}


class DrawnMaps(CachedMaps):
    """A cached view a photo and `texts` of its captions, drawn anew each time; `photo` is a row's place in `maps`."""

    def __init__(self, maps: torch.Tensor, rows: list[dict], texts: int):
        super().__init__(maps, rows)
        self.texts = texts

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        view = torch.randint(len(self.maps), ()).item()
        draws = torch.randint(len(row["captions"]), (self.texts,)).tolist()
        captions = [row["captions"][draw] for draw in draws]
        return {"image": self.maps[view, row["photo"]], "captions": captions, "index": index}


def build_processor(rows: list[dict], minilm: Path, recipe: dict) -> tuple[BlipProcessor, list[int]]:
    """One for captioner and filter: words of the captions, with [DEC] and [ENC]; each word's id in MiniLM's."""
    tokens, old = vocabulary(rows, minilm, recipe["vocabulary"]["min_count"], SPECIAL)
    tokenizer, old = judging_tokenizer(tokens, old, recipe["model"]["max_positions"])
    size = recipe["model"]["image_size"]
    return BlipProcessor(BlipImageProcessorPil(size={"height": size, "width": size}, **LITE), tokenizer), old


@torch.no_grad()
def build_filter(captioner: BlipForConditionalGeneration) -> BlipForImageTextRetrieval:
    """A retrieval head that starts from a copy of the captioner: its causal self-attention becomes bidirectional."""
    fields = captioner.config.to_dict()
    config = BlipConfig(
        vision_config=fields["vision_config"], text_config=fields["text_config"], projection_dim=128, momentum=None
    )
    model, known = BlipForImageTextRetrieval(config), captioner.state_dict()
    state = model.state_dict()
    for name, value in state.items():
        source = name if name in known else name.replace(".attention", ".causal_attention")
        state[name] = known.get(source, value)
    model.load_state_dict(state)
    return model


def learn(model, dataset: DrawnMaps, collator, stage: dict, output: Path) -> None:
    """One training on cached maps; the whole image tower is back in the model afterwards."""
    tower = model.vision_model
    model.vision_model = CachedTower(tower)
    train(model, dataset, None, collator, stage, output)
    model.vision_model = tower.to(model.device)


def equal_error(capfilt: CapFilt, rows: list[dict]) -> float:
    """The threshold at which as large a share of wrong pairs passes as of right ones is dropped.

    Args:
        rows: photos with human captions that nothing was learned from; each is judged with one of its own and one of
            the next photo's.
    """
    pairs = [[row["captions"][0], other["captions"][0]] for row, other in zip(rows, rows[1:] + rows[:1])]
    scores: list[float] = []
    for start in range(0, len(rows), 64):
        pixels = capfilt.loader([row["image"] for row in rows[start : start + 64]])["pixel_values"]
        scores += capfilt.scores(pixels, pairs[start : start + 64])
    right, wrong = torch.tensor(scores).view(-1, 2).sort(dim=0).values.unbind(1)
    dropped, passed = torch.arange(len(rows)), len(rows) - torch.searchsorted(wrong.contiguous(), right.contiguous())
    return right[(dropped - passed).abs().argmin()].item()


def kept_rows(folder: Path) -> list[dict]:
    """What the round kept."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def judged(web: list[dict], right: set[tuple[int, str]], kept: list[dict]) -> dict[str, float]:
    """Of the web's captions: how many of the kept ones are right, and how many of the right ones are kept."""
    captions = [(row, caption) for row in range(len(web)) for caption in web[row]["captions"]]
    chosen = [(row["row"], row["text"]) for row in kept if row["source"] == "web"]
    good = sum(caption in right for caption in chosen)
    total = sum(caption in right for caption in captions)
    return {
        "right before": round(total / len(captions), 3),
        "precision": round(good / max(len(chosen), 1), 3),
        "recall": round(good / max(total, 1), 3),
    }


def cider(folder: Path, rows: list[dict]) -> float:
    """Of a captioner on photos with their captions, with 3 beams."""
    captioner = pipeline("image-to-text", model=str(folder), dtype=torch.float32, device=DEVICE)
    outputs = captioner([str(row["image"]) for row in rows], batch_size=20, generate_kwargs={"num_beams": 3})
    captions = [output[0]["generated_text"] for output in outputs]
    return round(score_captions(captions, [row["captions"] for row in rows])["cider"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--efficientnet", type=Path, required=True, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints, shards and models")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/flickr8k_captioner.yaml")
    parser.add_argument("--photos", type=int, help="train on the first so many; all if left out")
    parser.add_argument("--test-photos", type=int, help="test on the first so many; all if left out")
    parser.add_argument("--human", type=float, default=0.25, help="share of the photos that keeps its captions")
    parser.add_argument("--noise", type=float, default=0.4, help="share of the web's captions that is shuffled")
    parser.add_argument("--texts", type=int, default=2, help="captions a photo and step")
    parser.add_argument("--views", type=int, default=2, help="random views a photo, encoded once and kept on disk")
    parser.add_argument("--epochs", type=int, default=6, help="of each captioner")
    parser.add_argument("--filter-epochs", type=int, default=15, help="of the filter")
    parser.add_argument("--tuning-epochs", type=int, default=3, help="of the captioner, on the human captions")
    parser.add_argument("--filter-tuning-epochs", type=int, default=60, help="of the filter, on the human captions")
    parser.add_argument(
        "--threshold", type=float, help="of the filter; left out: where its two errors are equal on validation photos"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the sampling")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)

    max_length = recipe["vocabulary"]["max_length"]
    rows = load_rows(args.data, "train", recipe["vocabulary"]["max_words"])[: args.photos]
    rows = [{**row, "photo": photo} for photo, row in enumerate(rows)]
    processor, old_ids = build_processor(rows, args.minilm, recipe)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    human = [rows[photo] for photo in order[: round(args.human * len(rows))]]
    web, right = corrupt(
        [rows[photo] for photo in order[len(human) :]], args.noise, torch.Generator().manual_seed(args.seed)
    )
    source = args.output / "web.jsonl"
    lines = [json.dumps({"image": str(row["image"].absolute()), "captions": row["captions"]}) + "\n" for row in web]
    source.write_text("".join(lines), encoding="utf-8")

    torch.manual_seed(0)
    captioner = build_model(processor, old_ids, args, recipe).to(DEVICE)
    maps = cache_maps(captioner.vision_model, processor, rows, args.views, args.output / "train_maps.pt")
    collator, stage, tuning = MapCollator(processor, max_length), {**STAGE}, {**TUNING}
    stage["epochs"], tuning["epochs"] = args.epochs, args.tuning_epochs
    noisy, tuned = DrawnMaps(maps, [*human, *web], args.texts), DrawnMaps(maps, human, args.texts)
    learn(captioner, noisy, collator, stage, args.output / "noisy_training")
    save(captioner, processor, args.output / "noisy")
    torch.manual_seed(1)
    judge = build_filter(captioner)
    learn(captioner, tuned, collator, tuning, args.output / "captioner_training")
    save(captioner, processor, args.output / "captioner")

    pairs = TensorPairs(processor, max_length)
    learn(judge, noisy, pairs, {**FILTER, "epochs": args.filter_epochs}, args.output / "filter_noisy_training")
    learn(judge, tuned, pairs, {**FILTER, "epochs": args.filter_tuning_epochs}, args.output / "filter_training")
    save(judge, processor, args.output / "filter")

    threshold = args.threshold
    if threshold is None:
        threshold = equal_error(
            CapFilt(captioner, processor, judge, processor, Recipe()), load_rows(args.data, "val", 24)
        )
    found = open_rows(source)
    round_one = Recipe(threshold=threshold, seed=args.seed, shard_size=256, batch_size=64)
    capfilt = CapFilt(captioner, processor, judge, processor, round_one)
    folder = args.output / "round-1"
    shards = ShardFolder(folder, capfilt.settings(found), found.in_bytes)
    counts = sum((part for _, part in bootstrap(found, shards, capfilt, on_error=print)), Counts())
    kept = kept_rows(folder)
    result = {"threshold": float(f"{threshold:.3g}"), **vars(counts), **judged(web, right, kept)}
    print("filter:", json.dumps(result), flush=True)

    texts: dict[int, list[str]] = {}
    for row in kept:
        texts.setdefault(row["row"], []).append(row["text"])
    cleaned = [{**web[row], "captions": captions} for row, captions in sorted(texts.items())]
    torch.manual_seed(0)
    fresh = build_model(processor, old_ids, args, recipe)
    learn(fresh, DrawnMaps(maps, [*human, *cleaned], args.texts), collator, stage, args.output / "clean_training")
    save(fresh, processor, args.output / "bootstrapped")

    test = load_rows(args.data, "test", max_words=1000)[: args.test_photos]
    scores = {name: cider(args.output / name, test) for name in ("noisy", "captioner", "bootstrapped")}
    print("test:", json.dumps({**result, "CIDEr": scores, "photos": len(test)}), flush=True)


if __name__ == "__main__":
    main()
