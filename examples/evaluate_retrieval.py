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
from hfvlm.evaluation.tasks import evaluate_retrieval
from hfvlm.pipelines.loading import load_whole


def percent(recalls: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * value, 1) for name, value in recalls.items()}


def evaluate(model, processor, rows: list[dict], rerank: int | None = None) -> dict[str, float]:
    """Recall at 1, 5 and 10, in percent, both ways, over all captions of all photos."""
    return percent(evaluate_retrieval(Embedder(model, processor, batch_size=64), rows, rerank=rerank))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rerank", type=int, help="judge so many of the nearest again (ALBEF, BLIP)")
    args = parser.parse_args()
    rows = load_rows(args.data, args.split, max_words=1000)  # every caption, without its final period
    auto = AutoModel if args.rerank is None else hfvlm.AutoModelForImageTextRetrieval
    model, processor = load_whole(auto, args.model), AutoProcessor.from_pretrained(args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps({**evaluate(model, processor, rows), "photos": len(rows)}))
    if args.rerank is not None:
        print(json.dumps({**evaluate(model, processor, rows, args.rerank), "reranked": args.rerank}))


if __name__ == "__main__":
    main()
