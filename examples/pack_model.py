"""Makes the built-in model of a trained folder: weights in fp16, no code (the package has it).

    python examples/pack_model.py --model blip/model --output src/hfvlm/assets/blip

It still loads in fp32, as `dtype` in config.json says.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


FILES = ("generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


def copy_settings(source: Path, output: Path, **more: str) -> None:
    """Copies a JSON file without what names the folder's own code."""
    settings = json.loads(source.read_text(encoding="utf-8"))
    kept = {k: v for k, v in settings.items() if k not in ("auto_map", "custom_pipelines", "use_cache")}
    text = json.dumps({**kept, **more}, indent=2, ensure_ascii=False)
    (output / source.name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.model / "model.safetensors")
    halved = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    worst = max((halved[name].float() - w.float()).abs().max().item() for name, w in weights.items())
    if not all(torch.isfinite(w).all() for w in halved.values() if w.is_floating_point()):
        raise SystemExit("a weight is too large for fp16")
    save_file(halved, args.output / "model.safetensors", metadata={"format": "pt"})
    copy_settings(args.model / "config.json", args.output, dtype="float32")
    for name in (name for name in FILES if (args.model / name).exists()):  # not every model generates
        copy_settings(args.model / name, args.output)
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
    print(
        f"{sum(w.numel() for w in weights.values()) / 1e6:.2f} M numbers, {size:.1f} MB, rounding at most {worst:.1e}"
    )


if __name__ == "__main__":
    main()
