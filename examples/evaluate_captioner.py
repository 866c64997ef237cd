"""Captions a split of Flickr8k and scores it: BLEU-1..4 and ROUGE-L in percent, and CIDEr (pycocoevalcap).

    python examples/evaluate_captioner.py --data flickr8k --model captioner --split test --beams 5

Words are those of `hfvlm.evaluation.words` (as the COCO caption evaluation's, no Java needed); all five references of
a photo count. `hfvlm evaluate captioning` scores a model with its own settings for generation.
"""

import argparse
import json
import time
from pathlib import Path

from hfvlm import pipeline
from hfvlm.data.captions import read_captions
from hfvlm.evaluation.tasks import score_captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--model", help="model folder; the built-in one if left out")
    parser.add_argument("--split", default="test")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--length-penalty", type=float, default=None)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--limit", type=int, help="only the first so many photos")
    parser.add_argument("--output", type=Path, help="write the captions here, a JSON object a line")
    args = parser.parse_args()
    rows = read_captions(args.data / "captions.jsonl", args.split)[: args.limit]
    captioner = pipeline("image-to-text", model=args.model)
    options = {"num_beams": args.beams}
    if args.length_penalty is not None:
        options["length_penalty"] = args.length_penalty
    start = time.perf_counter()
    outputs = captioner([str(row["image"]) for row in rows], batch_size=args.batch_size, generate_kwargs=options)
    seconds = time.perf_counter() - start
    captions = [output[0]["generated_text"] for output in outputs]
    if args.output:
        with args.output.open("w", encoding="utf-8") as lines:
            for row, caption in zip(rows, captions, strict=True):
                lines.write(json.dumps({"image": row["image"].name, "caption": caption}) + "\n")
    scores = score_captions(captions, [row["captions"] for row in rows])
    shown = {name: round(value, 3) if name == "cider" else round(100 * value, 1) for name, value in scores.items()}
    print(json.dumps({**shown, "photos": len(rows), "beams": args.beams}))
    print(f"{len(rows) / seconds:.1f} photos/s, {len(set(captions))} different captions")


if __name__ == "__main__":
    main()
