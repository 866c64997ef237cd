"""Captioning speed and memory of hfvlm's BLIP against the one in transformers: same weights, same process.

    python examples/benchmarks/caption.py                 # BLIP-base at 384 px, random weights, every setting
    python examples/benchmarks/caption.py --batch 1 --dtype fp32 --beams 1 3 --rounds 5 --profile

The two sides alternate, so that a machine whose speed drifts slows both; ratios are of medians. Random weights never
end a caption, so each has exactly `--tokens` tokens. Peak memory is what a fresh process with one side alone adds
while it generates.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch
from timing import alternate

import hfvlm
from hfvlm.conversion.convert_blip import to_transformers


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(image_size: int, seed: int = 0):
    """hfvlm's BLIP-base with random weights, and transformers' with the same ones."""
    torch.manual_seed(seed)
    config = hfvlm.BlipConfig.variant("base", vision_config={"image_size": image_size})
    ours = hfvlm.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.03)
            elif "norm" not in name:
                parameter.normal_(0, 0.02)
    return ours, to_transformers(ours).eval()


def generate(model, pixel_values, beams: int, tokens: int) -> torch.Tensor:
    start = torch.full((len(pixel_values), 1), model.config.text_config.bos_token_id)
    if "hfvlm" not in type(model).__module__:  # that generate() drops the last id, taking it for the end token
        start = torch.cat([start, start], dim=1)
    return model.generate(
        pixel_values=pixel_values,
        input_ids=start,
        num_beams=beams,
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
    )


@torch.inference_mode()
def gflops_of_products(model, batch: int, dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """GFLOP of the encoder's matrix products, and GFLOP/s of a bare loop over the same products."""
    config = model.config.vision_config
    tokens, dim, mlp = 1 + (config.image_size // config.patch_size) ** 2, config.hidden_size, config.intermediate_size
    x, h = torch.randn(batch * tokens, dim, dtype=dtype), torch.randn(batch * tokens, mlp, dtype=dtype)
    shapes = ((x, 3 * dim), (x, dim), (x, mlp), (h, dim))
    weights = [torch.randn(width, rows.shape[1], dtype=dtype) for rows, width in shapes]

    def loop():
        for _ in range(config.num_hidden_layers):
            for (rows, _), weight in zip(shapes, weights, strict=True):
                torch.nn.functional.linear(rows, weight)

    products = 2 * batch * tokens * config.num_hidden_layers * (4 * dim * dim + 2 * dim * mlp)
    attention = 4 * batch * tokens * tokens * dim * config.num_hidden_layers
    seconds = alternate({"loop": loop}, rounds)["loop"]
    return (products + attention) / 1e9, products / 1e9 / seconds


def peak_memory(side: str, args, batch: int, dtype: str, beams: int) -> float:
    """MiB that generating adds at its peak to a process that holds only that side's model."""
    command = [sys.executable, __file__, "--peak-of", side, "--batch", str(batch), "--dtype", dtype]
    command += ["--beams", str(beams), "--tokens", str(args.tokens), "--image-size", str(args.image_size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def kib(field: str) -> int:
    """A field of this process's memory status, in KiB (Linux)."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def report_peak(args) -> None:
    ours, theirs = build(args.image_size)
    model = (ours if args.peak_of == "hfvlm" else theirs).to(DTYPES[args.dtype[0]])
    del ours, theirs
    pixels = torch.randn(args.batch[0], 3, args.image_size, args.image_size, dtype=DTYPES[args.dtype[0]])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the models
    before = kib("VmRSS")
    with torch.inference_mode():
        generate(model, pixels, args.beams[0], args.tokens)
    print((kib("VmHWM") - before) / 1024)


@torch.inference_mode()
def profile(model, pixels, beams: int, tokens: int) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        generate(model, pixels, beams, tokens)
    print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--tokens", type=int, default=20, help="new tokens a caption")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-memory", action="store_true", help="leave the memory runs out")
    parser.add_argument("--profile", action="store_true", help="print where hfvlm's time goes, by operator")
    parser.add_argument("--peak-of", choices=["hfvlm", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return report_peak(args)

    ours, theirs = build(args.image_size)
    print(f"BLIP-base, {args.image_size} px, {args.tokens} tokens, {args.threads} threads, {args.rounds} rounds")
    print("| what | batch | dtype | transformers | hfvlm | ratio | same ids | memory ratio |")
    print("|---|---|---|---|---|---|---|---|")
    reference = {}
    for dtype_name in args.dtype:
        dtype = DTYPES[dtype_name]
        ours.to(dtype), theirs.to(dtype)
        for batch in args.batch:
            pixels = torch.randn(batch, 3, args.image_size, args.image_size, dtype=dtype)
            encoders = {"transformers": theirs.vision_model, "hfvlm": ours.vision_model}
            seconds = alternate({k: lambda m=m, x=pixels: m(pixel_values=x) for k, m in encoders.items()}, args.rounds)
            gflop, bound = gflops_of_products(ours, batch, dtype, args.rounds)
            rates = {name: gflop / value for name, value in seconds.items()}
            print(
                f"| encoder (bare products {bound:.0f} GFLOP/s) | {batch} | {dtype_name} "
                f"| {rates['transformers']:.0f} GFLOP/s | {rates['hfvlm']:.0f} GFLOP/s "
                f"| {rates['hfvlm'] / rates['transformers']:.2f} | | |",
                flush=True,
            )
            for beams in args.beams:
                sides = {"transformers": theirs, "hfvlm": ours}
                ids = {name: generate(model, pixels, beams, args.tokens) for name, model in sides.items()}
                same = (ids["hfvlm"] == ids["transformers"]).float().mean().item()
                calls = {k: lambda m=m, x=pixels, b=beams: generate(m, x, b, args.tokens) for k, m in sides.items()}
                rates = {name: batch / value for name, value in alternate(calls, args.rounds).items()}
                reference[batch, beams, dtype_name] = rates
                memory = ""
                if not args.no_memory:
                    peaks = {side: peak_memory(side, args, batch, dtype_name, beams) for side in sides}
                    memory = f"{peaks['hfvlm'] / peaks['transformers']:.2f}"
                print(
                    f"| {'greedy' if beams == 1 else f'{beams} beams'} | {batch} | {dtype_name} "
                    f"| {rates['transformers']:.2f} images/s | {rates['hfvlm']:.2f} images/s "
                    f"| {rates['hfvlm'] / rates['transformers']:.2f} | {same:.0%} | {memory} |",
                    flush=True,
                )
                if args.profile:
                    profile(ours, pixels, beams, args.tokens)
    for (batch, beams, dtype_name), rates in reference.items():
        base = reference.get((batch, beams, "fp32"))
        if dtype_name == "bf16" and base:
            ratio = rates["hfvlm"] / base["transformers"]
            print(f"hfvlm bf16 against transformers fp32, batch {batch}, beams {beams}: {ratio:.2f}")
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
