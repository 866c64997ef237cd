"""Time and memory of the chunked contrastive losses against the plain ones.

    python examples/benchmarks/contrastive.py                       # 1,024 to 32,768 pairs of 512 numbers
    python examples/benchmarks/contrastive.py --pairs 4096 --losses sigmoid --chunk-size 256

A call is the loss of fp32 features and its gradients. The two forms alternate, so that a machine whose speed drifts
slows both; the ratio is of medians. Memory is what a call adds at its peak to a fresh process with that form alone.
Where the machine's free memory does not hold the plain form's matrices, only the chunked one runs.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch
from timing import alternate

from hfvlm.losses.contrastive import contrastive_loss, sigmoid_loss


LOSSES = {"softmax": contrastive_loss, "sigmoid": sigmoid_loss}
#: how many matrices of all pairs the plain form holds at its peak, and some room
PLAIN_MATRICES = {"softmax": 4.3, "sigmoid": 2.3}


def step(loss: str, pairs: int, dim: int, chunk_size: int | None):
    """A function that computes a loss of random features and its gradients."""
    torch.manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, pairs, dim), dim=-1).unbind(0)
    inputs = [images.requires_grad_(), texts.requires_grad_(), torch.tensor(14.3, requires_grad=True)]

    def call() -> torch.Tensor:
        value = LOSSES[loss](*inputs, chunk_size=chunk_size)
        torch.autograd.grad(value, inputs)
        return value

    return call


def gib(line: str, path: str) -> float:
    """A line of a file of /proc, in GiB."""
    return int(re.search(rf"{line}:\s+(\d+) kB", Path(path).read_text())[1]) / 2**20


def print_peak(loss: str, pairs: int, dim: int, chunk_size: int | None) -> None:
    """Prints the GiB that a call adds at its peak to what this process holds before it."""
    call = step(loss, pairs, dim, chunk_size)
    step(loss, 16, dim, chunk_size and 8)()  # what torch loads at its first call
    before = gib("VmRSS", "/proc/self/status")
    call()
    print(gib("VmHWM", "/proc/self/status") - before)


def peak_memory(*setting) -> float:
    """`print_peak` in a fresh process."""
    loss, pairs, dim, chunk_size = map(str, setting)
    command = [sys.executable, __file__, "--peak-of", loss, pairs, dim, chunk_size]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--chunk-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, help="calls of each form; by default fewer for more pairs")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        loss, pairs, dim, chunk_size = args.peak_of
        return print_peak(loss, int(pairs), int(dim), None if chunk_size == "None" else int(chunk_size))
    print(f"{torch.get_num_threads()} threads, fp32, {args.dim} numbers a feature, {args.chunk_size} rows a chunk\n")
    print("| loss | pairs | chunked s | plain s | chunked / plain | chunked GiB | plain GiB |")
    print("|---|---|---|---|---|---|---|")
    for loss in args.losses:
        for pairs in args.pairs:
            forms = {"chunked": args.chunk_size, "plain": None}
            needed = PLAIN_MATRICES[loss] * 4 * pairs**2 / 2**30
            free = gib("MemAvailable", "/proc/meminfo")
            if needed > free:
                print(
                    f"{loss}, {pairs} pairs: no plain form, it may need {needed:.0f} GiB of {free:.0f} that are free"
                )
                del forms["plain"]
            peaks = {form: peak_memory(loss, pairs, args.dim, size) for form, size in forms.items()}
            calls = {form: step(loss, pairs, args.dim, size) for form, size in forms.items()}
            seconds = alternate(calls, args.rounds or max(3, min(15, 2**26 // pairs**2)))
            row = [loss, pairs, f"{seconds['chunked']:.3f}"]
            if "plain" in forms:
                row += [f"{seconds['plain']:.3f}", f"{seconds['chunked'] / seconds['plain']:.2f}"]
                row += [f"{peaks['chunked']:.2f}", f"{peaks['plain']:.2f}"]
            else:
                row += ["-", "-", f"{peaks['chunked']:.2f}", "-"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
