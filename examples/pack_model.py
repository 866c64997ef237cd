"""Makes a built-in model of a trained folder: weights in fp16, no code (the package has it).

    python examples/pack_model.py --model captioner/model --output src/hfvlm/assets/captioner

It still loads in fp32, as `dtype` in config.json says.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


FILES = ("generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


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
    config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
    config = {k: v for k, v in config.items() if k not in ("auto_map", "custom_pipelines", "use_cache")} | {
        "dtype": "float32"
    }
    (args.output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in (name for name in FILES if (args.model / name).exists()):  # not every model generates
        shutil.copy(args.model / name, args.output / name)
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 1e6
    print(
        f"{sum(w.numel() for w in weights.values()) / 1e6:.2f} M numbers, {size:.1f} MB, rounding at most {worst:.1e}"
    )


if __name__ == "__main__":
    main()
