"""Retrieval on Flickr8k: how often the right caption is among a photo's nearest 1, 5, 10, and the reverse.

python examples/evaluate_retrieval.py --data flickr8k --model clip --split test
python examples/evaluate_retrieval.py --data flickr8k --model blip --rerank 32   # the nearest judged again
"""

import argparse
import json
from pathlib import Path

import torch
from train_captioner import load_rows
from transformers import AutoModel, AutoProcessor

import hfvlm
from hfvlm.embedder import Embedder
from hfvlm.evaluation.retrieval import recall_at, recall_of_embeddings
from hfvlm.reranking import rerank_scores


def percent(recalls: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * value, 1) for name, value in recalls.items()}


def evaluate(model, processor, rows: list[dict]) -> dict[str, float]:
    """Recall at 1, 5 and 10, in percent, both ways, over all captions of all photos."""
    embed = Embedder(model, processor, batch_size=64)
    texts = [(caption, i) for i, row in enumerate(rows) for caption in row["captions"]]
    recalls = recall_of_embeddings(
        embed.images([row["image"] for row in rows]),
        embed.texts([caption for caption, _ in texts]),
        [i for _, i in texts],
    )
    return percent(recalls)


@torch.inference_mode()
def evaluate_reranked(model, processor, rows: list[dict], k: int) -> dict[str, float]:
    """As `evaluate`, where the `k` nearest are judged again by a fusion model's retrieval head."""
    embed = Embedder(model, processor, batch_size=64)
    encoded = [
        model.get_image_features(pixels) for _, pixels in embed.loader.stream([row["image"] for row in rows], 32)
    ]
    tokens = torch.cat([outputs.last_hidden_state for outputs in encoded])
    images = torch.nn.functional.normalize(torch.cat([outputs.pooler_output for outputs in encoded]), dim=-1)
    captions = [caption for row in rows for caption in row["captions"]]
    own = [i for i, row in enumerate(rows) for _ in row["captions"]]
    batch = embed.tokens(captions)
    similarity = images @ embed.texts(captions).t()
    scores = rerank_scores(model, tokens, batch["input_ids"], batch["attention_mask"], similarity, k)
    of_images, of_texts = recall_at(scores[0], own), recall_at(scores[1].t(), own)
    return percent({name: (of_images if name.startswith("image") else of_texts)[name] for name in of_images})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rerank", type=int, help="judge so many of the nearest again (ALBEF, BLIP)")
    args = parser.parse_args()
    rows = load_rows(args.data, args.split, max_words=1000)  # every caption, without its final period
    auto = AutoModel if args.rerank is None else hfvlm.AutoModelForImageTextRetrieval
    model, processor = auto.from_pretrained(args.model).eval(), AutoProcessor.from_pretrained(args.model)
    print(json.dumps({**evaluate(model, processor, rows), "photos": len(rows)}))
    if args.rerank is not None:
        print(json.dumps({**evaluate_reranked(model, processor, rows, args.rerank), "reranked": args.rerank}))


if __name__ == "__main__":
    main()
