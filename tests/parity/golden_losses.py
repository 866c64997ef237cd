"""open_clip's losses: values and gradients in one process, and in each of two."""

import itertools
from pathlib import Path

import torch
from golden import Golden
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

from hfvlm.losses.chunked import softplus_sum
from hfvlm.losses.contrastive import contrastive_loss, sigmoid_loss, similarity_logits


#: gradient names -> places among the inputs
SOFTMAX = {"image_features": 0, "text_features": 1, "logit_scale": 2}
SIGMOID = {**SOFTMAX, "logit_bias": 3}


def results(name: str, loss, inputs: list[torch.Tensor], by: dict[str, int], value: str = "") -> dict:
    """The loss of fresh copies of the inputs and its gradients, under the names that they are recorded by."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    total = loss(*inputs)
    total.backward()
    return {name + value: total.detach(), **{f"{name}.d_{of}": inputs[i].grad for of, i in by.items()}}


def losses(golden: Golden, monkeypatch, tmp_path) -> None:
    names = ("image_features", "text_features", "logit_scale", "logit_bias")
    inputs = [golden.inputs[name] for name in names]
    images, texts, scale, _ = inputs
    golden.check("clip_logits_per_image", similarity_logits(images, texts, scale))
    golden.check("clip_logits_per_text", similarity_logits(texts, images, scale))

    def negatives(images, texts, scale, bias):
        return softplus_sum(images, texts, scale, bias, chunk_size=3) / len(images)

    for chunk_size in (None, 2):

        def softmax(images, texts, scale, bias=None, size=chunk_size):
            return contrastive_loss(images, texts, scale, logit_bias=bias, chunk_size=size)

        def sigmoid(images, texts, scale, bias, size=chunk_size):
            return sigmoid_loss(images, texts, scale, bias, chunk_size=size)

        ours = results("clip_loss", softmax, inputs[:3], SOFTMAX)
        ours |= results("clip_loss_with_bias", softmax, inputs, SIGMOID)
        for name in ("siglip_loss", "siglip_loss_chunked2"):
            ours |= results(name, sigmoid, inputs, SIGMOID)
        ours |= results("siglip_loss_negative_only", negatives, inputs, SIGMOID)
        for name, tensor in ours.items():
            golden.check(name, tensor)


def process(rank: int, folder: Path, output: Path) -> None:
    """One of two: its numbers of every recorded case, into a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{output / 'store'}", rank=rank, world_size=2)
    recorded = load_file(folder / "inputs.safetensors")
    rows = [recorded[name].chunk(2)[rank] for name in ("image_features", "text_features")]
    scale, bias = recorded["logit_scale"], recorded["logit_bias"]
    ours = {}
    for local, with_grad in itertools.product((False, True), repeat=2):

        def softmax(images, texts, scale, local=local, how=with_grad or "detached"):
            return contrastive_loss(images, texts, scale, gather=how, local_loss=local)

        for family in ("clip", "clip_distnn") if with_grad else ("clip",):
            name = f"{family}.local_loss={local}.gather_with_grad={with_grad}.rank{rank}"
            ours |= results(name, softmax, [*rows, scale], SOFTMAX, ".loss")
    for exchange in ("bidir", "gather", "reduce", "shift"):  # ways of fetching the same texts
        ours |= results(f"siglip.{exchange}.rank{rank}", sigmoid_loss, [*rows, scale, bias], SIGMOID, ".loss")
    save_file(ours, output / f"rank{rank}.safetensors")
    distributed.barrier()  # one that leaves first makes gloo abort in the other now and then
    distributed.destroy_process_group()


def two_processes(golden: Golden, monkeypatch, tmp_path) -> None:
    multiprocessing.spawn(process, (golden.folder, tmp_path), nprocs=2)
    for rank in range(2):
        for name, tensor in load_file(tmp_path / f"rank{rank}.safetensors").items():
            golden.check(name, tensor)
