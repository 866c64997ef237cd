"""Speed and memory of hfvlm's CLIP against transformers' and open_clip's: same weights, same process.

    python examples/benchmarks/two_towers.py                  # every model and setting, random weights
    python examples/benchmarks/two_towers.py --quick
    python examples/benchmarks/two_towers.py --models vit_b_32 --batch 32 --dtype fp32 --threads 1 --clock cpu

The sides alternate, so that a machine whose speed drifts slows all of them; ratios are of medians. "bare products" is
a loop over the tower's matrix products (its convolutions, for a ResNet) on memory that is there already: the share of
its rate that hfvlm reaches. Peak memory is what a fresh process with one side alone adds while it runs. open_clip is
left out if it is not installed, transformers where it has no such model. `--clock cpu` takes the processor time of
this process instead of the wall's, for a machine that does other work; it needs `--threads 1`.
"""

import argparse
import ctypes
import importlib
import importlib.machinery
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from timing import alternate
from torch import nn
from transformers.utils import is_torchvision_available

import hfvlm
from hfvlm.conversion.clip_rules import in_tree_config
from hfvlm.conversion.convert_clip import convert, to_transformers
from hfvlm.nn.linear import onednn_is_there


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPEN_CLIP_NAMES = {"vit_b_32": "ViT-B-32-quickgelu", "vit_l_14": "ViT-L-14-quickgelu", "rn50": "RN50-quickgelu"}
SIDES = ("hfvlm", "transformers", "open_clip")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Nothing(types.ModuleType):
    """Stands for a torchvision that is not installed: every name is a class, which nothing here calls."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyName(name, (), {})


def import_open_clip():
    """open_clip, which imports torchvision for image transforms that are not needed here; None if not installed."""
    if is_torchvision_available():
        names = ()
    else:
        inner = ("transforms", "transforms.functional", "ops", "ops.misc")
        names = ("torchvision", *(f"torchvision.{name}" for name in inner))
    for name in names:
        module = sys.modules[name] = _Nothing(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        return importlib.import_module("open_clip")
    except ImportError:
        return None
    finally:
        for name in names:
            del sys.modules[name]


@torch.no_grad()
def create_open_clip(name: str) -> nn.Module | None:
    """open_clip's model with random weights, all of which matter; None where it is not installed."""
    open_clip = import_open_clip()
    if open_clip is None:
        return None
    model = open_clip.create_model(OPEN_CLIP_NAMES[name], load_weights=False)
    for key, tensor in model.named_parameters():
        if tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.02)  # biases start as zeros
        if key.endswith("bn3.weight"):
            tensor.fill_(0.5)  # and a ResNet's blocks as their shortcuts
    return model.eval()


@torch.no_grad()
def build(name: str) -> dict[str, nn.Module]:
    """The models by the name of their library, all with the same random weights."""
    torch.manual_seed(0)
    theirs = create_open_clip(name)
    if theirs is None:
        ours = build_alone(name, "hfvlm")
    else:
        ours = convert(theirs.state_dict(), variant=name)
    models = {"hfvlm": ours}
    if name.startswith("vit"):
        models["transformers"] = to_transformers(ours)
    return models if theirs is None else {**models, "open_clip": theirs}


def build_alone(name: str, side: str) -> nn.Module:
    """The model of one library, in a process that never holds another's weights."""
    config = hfvlm.ClipConfig.variant(name)
    if side == "open_clip":
        return create_open_clip(name)
    return (hfvlm.ClipModel(config) if side == "hfvlm" else transformers.CLIPModel(in_tree_config(config))).eval()


def inputs(config: hfvlm.ClipConfig, batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and texts of full length that end in the end token."""
    vision, text = config.vision_config, config.text_config
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, dtype=dtype)
    ids = torch.randint(0, text.bos_token_id, (batch, text.max_position_embeddings))
    ids[:, 0], ids[:, -1] = text.bos_token_id, text.eos_token_id
    return pixels, ids


def encoder(model: nn.Module, tower: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels or ids to vectors in the joint space."""
    if hasattr(model, "encode_image"):
        return getattr(model, f"encode_{tower}")
    features = getattr(model, f"get_{tower}_features")
    return lambda x: features(x).pooler_output


def train_step(model: nn.Module, pixels: torch.Tensor, ids: torch.Tensor) -> None:
    """Forward, contrastive loss, backward."""
    model.zero_grad(set_to_none=True)
    if hasattr(model, "encode_image"):
        loss = import_open_clip().ClipLoss()(*model(pixels, ids)[:3])
    else:
        loss = model(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    loss.backward()


def transformer_products(width: int, mlp: int, layers: int, heads: int, batch: int, tokens: int) -> list[tuple]:
    """`(repeats, matrices, rows, inner, columns)` of every product in the blocks."""
    rows = batch * tokens
    linear = [(width, 3 * width), (width, width), (width, mlp), (mlp, width)]
    attention = [(tokens, width // heads, tokens), (tokens, tokens, width // heads)]
    return [
        *((layers, 1, rows, *shape) for shape in linear),
        *((layers, batch * heads, *shape) for shape in attention),
    ]


def bare_products(config, tower: str, batch: int, dtype: torch.dtype, clock: Callable) -> Callable[[], None]:
    """A call that does a transformer tower's matrix products and nothing else, each by the faster of two kernels."""
    part = config.vision_config if tower == "image" else config.text_config
    shape = (part.hidden_size, part.intermediate_size, part.num_hidden_layers, part.num_attention_heads, batch)
    if tower == "image":
        patches = part.grid_size**2
        products = transformer_products(*shape, patches + 1)
        products.append((1, 1, batch * patches, 3 * part.patch_size**2, part.hidden_size))
    else:
        products = transformer_products(*shape, part.max_position_embeddings)
    ready = []
    for repeats, matrices, rows, inner, columns in products:
        lead = (matrices,) if matrices > 1 else ()
        left = torch.randn(*lead, rows, inner, dtype=dtype)
        right = torch.randn(*lead, columns, inner, dtype=dtype)
        place = torch.empty(*lead, rows, columns, dtype=dtype)
        kernels = {"matmul": partial(torch.matmul, left, right.transpose(-1, -2), out=place)}
        if not lead and onednn_is_there():
            kernels["onednn"] = partial(torch.ops.mkldnn._linear_pointwise, left, right, None, "none", [], "")
        seconds = alternate(kernels, 3, clock)
        ready.append((repeats, kernels[min(seconds, key=seconds.get)]))

    def loop() -> None:
        for repeats, product in ready:
            for _ in range(repeats):
                product()

    return loop


def bare_convolutions(model: nn.Module, pixels: torch.Tensor) -> Callable[[], None]:
    """A call that does the convolutions of hfvlm's image tower and nothing else."""
    calls, hooks = [], []
    for module in model.vision_model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(lambda layer, args, _: calls.append((layer, args[0].clone()))))
    model.vision_model(pixels)
    for hook in hooks:
        hook.remove()

    def loop() -> None:
        for layer, features in calls:
            layer(features)

    return loop


def kib(field: str) -> int:
    """A field of this process's memory status, in KiB (Linux)."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def report_peak(args) -> None:
    """Prints the MiB that one side adds, alone in its process."""
    dtype, batch = DTYPES[args.dtype[0]], args.batch[0]
    model = build_alone(args.models[0], args.peak_of).to(dtype)
    pixels, ids = inputs(hfvlm.ClipConfig.variant(args.models[0]), batch, dtype)
    ctypes.CDLL(None).malloc_trim(0)  # what building leaves free would serve the run unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    before = kib("VmRSS")
    if args.peak_tower == "training":
        train_step(model.train(), pixels, ids)
    else:
        with torch.inference_mode():
            encoder(model, args.peak_tower)(pixels if args.peak_tower == "image" else ids)
    print((kib("VmHWM") - before) / 1024)


def peak_memory(side: str, tower: str, name: str, batch: int, dtype: str, args) -> float:
    command = [sys.executable, __file__, "--peak-of", side, "--peak-tower", tower, "--models", name]
    command += ["--batch", str(batch), "--dtype", dtype, "--threads", str(args.threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report(label: list[str], seconds: dict[str, float], batch: int, bare: float | None, args) -> None:
    """Prints one line of the table; `label` is model, tower, batch and dtype."""
    peers = {side: value for side, value in seconds.items() if side != "hfvlm"}
    rates = [
        f"{batch / seconds[side]:.2f}" if side in seconds else "" for side in ("transformers", "open_clip", "hfvlm")
    ]
    ratio = f"{min(peers.values()) / seconds['hfvlm']:.2f}" if peers else ""
    share = f"{bare / seconds['hfvlm']:.0%}" if bare else ""
    memory = ""
    if args.memory:
        name, tower, _, dtype = label
        peaks = {side: peak_memory(side, tower, name, batch, dtype, args) for side in seconds}
        least = min((value for side, value in peaks.items() if side != "hfvlm"), default=peaks["hfvlm"])
        memory = f"{peaks['hfvlm']:.0f} MiB, {peaks['hfvlm'] / least:.2f}"
    print(f"| {' | '.join([*label, *rates, ratio, share, memory])} |", flush=True)


def measure(name: str, models: dict[str, nn.Module], batch: int, dtype: str, args) -> None:
    """Both towers of one model."""
    ours, clock = models["hfvlm"], CLOCKS[args.clock]
    pixels, ids = inputs(ours.config, batch, DTYPES[dtype])
    with torch.inference_mode():
        for tower, x in (("image", pixels), ("text", ids)):
            calls = {side: partial(encoder(model, tower), x) for side, model in models.items()}
            results = {side: call().float() for side, call in calls.items()}
            for side, result in results.items():
                error = (result - results["hfvlm"]).abs().max() / results["hfvlm"].abs().max()
                if error > (1e-4 if dtype == "fp32" else 0.1):
                    raise RuntimeError(
                        f"{name}, {tower}: {side} differs from hfvlm by {error:.2g} of the largest value"
                    )
            convolutional = tower == "image" and not name.startswith("vit")
            calls["bare"] = (
                bare_convolutions(ours, x)
                if convolutional
                else bare_products(ours.config, tower, batch, DTYPES[dtype], clock)
            )
            seconds = alternate(calls, args.repeats, clock)
            bare = seconds.pop("bare")
            report([name, tower, str(batch), dtype], seconds, batch, bare, args)


def measure_training(name: str, models: dict[str, nn.Module], dtype: str, args) -> None:
    """Forward, loss and backward of one model."""
    batch = args.train_batch
    pixels, ids = inputs(models["hfvlm"].config, batch, DTYPES[dtype])
    calls = {side: partial(train_step, model.train(), pixels, ids) for side, model in models.items()}
    seconds = alternate(calls, args.repeats, CLOCKS[args.clock])
    for model in models.values():
        model.eval().zero_grad(set_to_none=True)
    report([name, "training", str(batch), dtype], seconds, batch, None, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=OPEN_CLIP_NAMES, default=list(OPEN_CLIP_NAMES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--train-batch", type=int, default=16, help="pairs of a training step; 0 leaves training out")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="one model, fp32, small batches, no memory runs")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory runs out")
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--peak-tower", choices=["image", "text", "training"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the time of all threads, waiting included: pass --threads 1 with it")
    if args.train_batch == 1:
        parser.error("--train-batch 1 has no negatives: pass 2 or more, or 0 for no training")
    if args.quick:
        args.models, args.batch, args.dtype, args.train_batch = args.models[:1], [1, 8], ["fp32"], 4
        args.repeats, args.memory = 3, False
    torch.set_num_threads(args.threads)
    if args.peak_of:
        return report_peak(args)
    print(
        f"{args.threads} threads, {args.repeats} repeats, {args.clock} clock; rates in images, texts or pairs a second"
    )
    print(
        "| model | tower | batch | dtype | transformers | open_clip | hfvlm | ratio | of bare products | peak, ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in args.models:
        models = build(name)
        for dtype in args.dtype:
            for model in models.values():
                model.to(DTYPES[dtype])
            for batch in args.batch:
                measure(name, models, batch, dtype, args)
            if args.train_batch:
                measure_training(name, models, dtype, args)


if __name__ == "__main__":
    main()
