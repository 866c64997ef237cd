"""Retrieval on Flickr8k: how often the right caption is among a photo's nearest 1, 5, 10, and the reverse.

python examples/evaluate_retrieval.py --data flickr8k --model clip --split test
"""

import argparse
import json
from pathlib import Path

from train_captioner import load_rows
from transformers import AutoModel, AutoProcessor

import hfvlm  # noqa: F401  (registers the architectures)
from hfvlm.embedder import Embedder
from hfvlm.evaluation.retrieval import recall_of_embeddings


def evaluate(model, processor, rows: list[dict]) -> dict[str, float]:
    """Recall at 1, 5 and 10, in percent, both ways, over all captions of all photos."""
    embed = Embedder(model, processor, batch_size=64)
    texts = [(caption, i) for i, row in enumerate(rows) for caption in row["captions"]]
    recalls = recall_of_embeddings(
        embed.images([row["image"] for row in rows]),
        embed.texts([caption for caption, _ in texts]),
        [i for _, i in texts],
    )
    return {name: round(100 * value, 1) for name, value in recalls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--model", required=True, help="folder or name on the Hub")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    rows = load_rows(args.data, args.split, max_words=1000)  # every caption, without its final period
    model, processor = AutoModel.from_pretrained(args.model), AutoProcessor.from_pretrained(args.model)
    print(json.dumps({**evaluate(model, processor, rows), "photos": len(rows)}))


if __name__ == "__main__":
    main()
