"""Training steps, re-ranking and ranked answers of ALBEF and BLIP against loops that repeat images for their texts.

    python examples/benchmarks/fusion.py step --architecture blip            # BLIP-base pretraining, random weights
    python examples/benchmarks/fusion.py step --architecture albef --batch 4 --dtype bf16
    python examples/benchmarks/fusion.py rerank --images 8 --texts 512       # of 1,000 and 5,000: a sample of queries
    python examples/benchmarks/fusion.py rank --batch 4                      # 100 candidate answers a question
    python examples/benchmarks/fusion.py rerank --model FOLDER --images 1000 --texts 5000

`fusion_reference.py` has the other side: plain attention, an image's tokens copied for each of its texts, every pass
by itself. Both sides have the same weights and inputs, and give the same numbers before they are timed; they alternate
in one process, so that a machine whose speed drifts slows both, and ratios are of medians. A step is the forward and
the backward pass and the teacher's move. Peak memory is what a fresh process with one side alone adds, on a GPU what
one side alone allocates beside weights and inputs (`--device cuda`).
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fusion_reference as reference
import torch
from timing import alternate

import hfvlm
from hfvlm.losses import matching


ALPHA = 0.4
IMAGE_SIZE = {"albef": 256, "blip": 224}


def build(architecture: str, size: str, **fields) -> torch.nn.Module:
    """A pretraining head with random weights and no dropout, so that both sides give the same."""
    torch.manual_seed(0)
    config_class = {"albef": "AlbefConfig", "blip": "BlipConfig"}[architecture]
    text = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    fields = {"vision_config": {"image_size": IMAGE_SIZE[architecture]}, "text_config": text, **fields}
    config = getattr(hfvlm, config_class).variant(size, **fields)
    head = {"albef": "AlbefForPreTraining", "blip": "BlipForPreTraining"}[architecture]
    return getattr(hfvlm, head)(config)


def on(device: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def autocast(args):
    """What the passes of either side run in."""
    if args.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(args.device, torch.bfloat16)


def batch_of(model, rows: int, longest: int) -> dict[str, torch.Tensor]:
    """Random pixels, and texts of 8 words to the longest."""
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(0)
    size = (rows, 3, vision.image_size, vision.image_size)
    ids = torch.randint(min(1000, text.vocab_size // 2), text.vocab_size - 2, (rows, longest), generator=generator)
    lengths = torch.linspace(min(8, longest), longest, rows).long()
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids[:, 0] = 1
    return {
        "pixel_values": torch.randn(size, generator=generator),
        "input_ids": ids * mask,
        "attention_mask": mask,
    }


def step_sides(args) -> dict[str, Callable[[], torch.Tensor]]:
    """A training step of each side; they return the loss."""
    matching.draw = likeliest = lambda weights: weights.argmax(dim=-1)
    model = build(args.architecture, args.size).train().to(args.device)
    batch = on(args.device, batch_of(model, args.batch, args.length))
    extra = ()
    if args.architecture == "albef":
        from hfvlm.models.albef import pretraining_albef

        ids, mask = batch["input_ids"], batch["attention_mask"]
        drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)).to(args.device)
        chosen = (drawn < 0.15) & (mask == 1)
        chosen[:, 0] = False
        extra = ids.masked_fill(chosen, 2), ids.masked_fill(~chosen, -100)
        pretraining_albef.mask_tokens = lambda *_, **__: extra

    queues = [(kept, kept.clone()) for queue in (model.image_queue, model.text_queue) for kept in queue.buffers()]

    def start() -> None:
        """The queues as they were: else either side would find what the other has put there."""
        for kept, rows in queues:
            kept.copy_(rows)
        model.zero_grad()

    def ours() -> torch.Tensor:
        start()
        with autocast(args):
            loss = model(**batch, alpha=ALPHA).loss
        loss.backward()
        return loss.detach()

    step = {"albef": reference.albef_step, "blip": reference.blip_step}[args.architecture]

    def theirs() -> torch.Tensor:
        start()
        with autocast(args):
            loss = step(model, *batch.values(), *extra, ALPHA, likeliest)
        loss.backward()
        return loss.detach()

    return {"reference": theirs, "hfvlm": ours}


def rerank_sides(args) -> dict[str, Callable[[], torch.Tensor]]:
    """Re-ranking of each side; they return the scores of the images' texts."""
    from hfvlm.reranking import rerank_scores

    if args.model:
        model = hfvlm.AutoModelForImageTextRetrieval.from_pretrained(args.model)
    else:
        model = build(args.architecture, args.size, momentum=None)
    model.eval().to(args.device)
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(0)
    tokens = (vision.image_size // getattr(vision, "patch_size", 32)) ** 2 + int(hasattr(vision, "patch_size"))
    images = torch.randn(args.images, tokens, vision.hidden_size, generator=generator)
    ids = torch.randint(10, text.vocab_size - 2, (args.texts, args.length), generator=generator)
    mask = torch.ones_like(ids)
    similarity = torch.randn(args.images, args.texts, generator=generator).div(4).tanh()
    adds = getattr(model, "rerank_adds_similarity", False)
    inputs = [tensor.to(args.device) for tensor in (images, ids, mask, similarity)]

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        with autocast(args):
            return rerank_scores(model, *inputs, args.k)[0]

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        with autocast(args):
            return reference.rerank(model, *inputs, args.k, adds)[0]

    return {"reference": theirs, "hfvlm": ours}


def rank_sides(args) -> dict[str, Callable[[], torch.Tensor]]:
    """Ranked question answering of each side; they return the candidates' log-likelihoods, likeliest first."""
    torch.manual_seed(0)
    config = getattr(hfvlm, {"albef": "AlbefConfig", "blip": "BlipConfig"}[args.architecture]).variant(args.size)
    head = {"albef": "AlbefForVisualQuestionAnswering", "blip": "BlipForVisualQuestionAnswering"}[args.architecture]
    config.momentum = None
    model = getattr(hfvlm, head)(config).eval().to(args.device)
    batch = on(args.device, batch_of(model, args.batch, args.length))
    generator = torch.Generator().manual_seed(1)
    words = config.text_config.vocab_size
    answers = torch.randint(min(1000, words // 2), words - 2, (args.candidates, 5), generator=generator)
    answers[:, 0] = config.text_config.bos_token_id
    mask = (torch.arange(5) < torch.randint(3, 6, (args.candidates, 1), generator=generator)).long()
    answers, mask = (answers * mask).to(args.device), mask.to(args.device)

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        with autocast(args):
            found = model.rank_answers(**batch, answer_ids=answers, answer_mask=mask, k=args.candidates)
        return found.log_likelihoods.sort(dim=-1, descending=True).values

    @torch.inference_mode()
    def theirs() -> torch.Tensor:
        with autocast(args):
            return reference.rank_answers(model, *batch.values(), answers, mask, args.candidates)

    return {"reference": theirs, "hfvlm": ours}


SIDES = {"step": step_sides, "rerank": rerank_sides, "rank": rank_sides}


def gib(name: str) -> float:
    """A field of this process's status, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def memory_of(side: str) -> float:
    """GiB that one side alone adds in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(done.stdout.split()[-1])


def allocated_by(side: Callable[[], torch.Tensor]) -> float:
    """GiB of the GPU's that one side allocates beside what is there, gradients among it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def finished(side: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Runs a side until the GPU is done with it."""

    def run() -> None:
        side()
        torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SIDES)
    parser.add_argument("--architecture", choices=("albef", "blip"), default="blip")
    parser.add_argument("--size", default="base")
    parser.add_argument("--model", type=Path, help="re-ranking: a model's folder instead of random weights")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="by autocast")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a step")
    parser.add_argument("--length", type=int, default=20, help="tokens of the longest text")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--candidates", type=int, default=100, help="answers that are ranked")
    parser.add_argument("--k", type=int, default=128, help="how many are re-ranked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=("reference", "hfvlm"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sides = SIDES[args.what](args)
    if args.alone:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
        before = gib("VmRSS")
        sides[args.alone]()
        print(gib("VmHWM") - before)
        return
    dtype, args.dtype = args.dtype, "fp32"  # in which both sides round alike
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.testing.assert_close(sides["hfvlm"](), sides["reference"](), rtol=1e-3, atol=1e-3)
    args.dtype = dtype
    if args.device == "cuda":
        print(torch.cuda.get_device_name())
        memory = {name: allocated_by(side) for name, side in sides.items()}
        sides = {name: finished(side) for name, side in sides.items()}
    else:
        memory = {side: memory_of(side) for side in sides}
    seconds = alternate(sides, args.rounds)
    for side in sides:
        print(f"{side:10} {seconds[side]:8.2f} s   {memory[side]:6.2f} GiB added")
    print(
        f"speed ratio {seconds['reference'] / seconds['hfvlm']:.2f}, "
        f"memory ratio {memory['hfvlm'] / memory['reference']:.2f}"
    )


if __name__ == "__main__":
    main()
