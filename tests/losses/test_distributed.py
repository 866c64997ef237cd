"""Two processes equal one with the joined batch: losses, every gradient, what the queue holds."""

import itertools

import pytest
import torch
from features import pairs
from torch import distributed, multiprocessing, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from hfvlm.losses.contrastive import contrastive_loss, sigmoid_loss
from hfvlm.losses.gather import gather
from hfvlm.losses.gradient_cache import in_micro_batches
from hfvlm.losses.queue import NegativeQueue


WORLD = 2
IDS = torch.tensor([4, 1, 4, -100, 1, -100])
QUEUE = (*pairs(5, seed=9), torch.tensor([4, -100, 2, 9, 1]))
SOFT = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SPLITS = ([3, 3], [2, 4], [5, 1], [0, 6])
OPTIONS = {
    "plain": {},
    "ids": {"image_ids": IDS},
    "smoothing, queue": {"label_smoothing": 0.1, "queue": QUEUE[:2]},
    "ids, smoothing, queue": {"image_ids": IDS, "label_smoothing": 0.1, "queue": QUEUE},
    "soft": {"soft_targets": SOFT},
}


def run(loss, inputs, **options) -> list[torch.Tensor]:
    """The loss and its gradients by images, texts, scale and bias."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(inputs[0], inputs[1], inputs[2], logit_bias=inputs[3], **options)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs)]


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor / WORLD


def check(ours, joined, own: slice) -> None:
    """A process's numbers against one process's with all rows; features' gradients are averaged by no one yet."""
    value, images, texts, scale, bias = ours
    actual = [mean_over_processes(value), images / WORLD, texts / WORLD, *map(mean_over_processes, (scale, bias))]
    expected = [joined[0], joined[1][own], joined[2][own], *joined[3:]]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


def check_losses(rank: int) -> None:
    images, texts = pairs(6)
    scalars = torch.tensor(9.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    for split, (name, options), chunk_size in itertools.product(SPLITS, OPTIONS.items(), (None, 2)):
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        mine = dict(options)
        if "image_ids" in mine:
            mine["image_ids"] = IDS[own]
        if "soft_targets" in mine:
            mine["soft_targets"] = SOFT[:, own]
        rows = (images[own], texts[own], *scalars)
        joined = run(contrastive_loss, (images, texts, *scalars), gather=False, **options)
        for local in (False, True):
            check(run(contrastive_loss, rows, local_loss=local, chunk_size=chunk_size, **mine), joined, own)
        value, by_images, by_texts, *_ = run(contrastive_loss, rows, gather="detached", chunk_size=chunk_size, **mine)
        torch.testing.assert_close([value, by_images, by_texts], [joined[0], joined[1][own], joined[2][own]])
        if name in ("plain", "ids"):
            joined = run(sigmoid_loss, (images, texts, *scalars), gather=False, **options)
            check(run(sigmoid_loss, rows, chunk_size=chunk_size, **mine), joined, own)
    if rank == 0:  # asks no one
        alone = run(contrastive_loss, (images[:3], texts[:3], *scalars), gather=False)
        assert alone[0] < joined[0]


def check_detached_sigmoid(rank: int) -> None:
    """The other process's texts are constants, the own ones are not."""
    images, texts = pairs(6)
    own, scale, bias = slice(3 * rank, 3 * rank + 3), torch.tensor(9.0), torch.tensor(-3.0)
    _, _, by_texts, *_ = run(sigmoid_loss, (images[own], texts[own], scale, bias), gather="detached")
    texts.requires_grad_()
    logits = scale * images[own] @ texts.t() + bias
    matches = torch.zeros(3, 6).bool()
    matches[range(3), range(own.start, own.stop)] = True
    nn.functional.softplus(torch.where(matches, -logits, logits)).sum().div(3).backward()
    torch.testing.assert_close(by_texts, texts.grad[own])


class TwoTowers(nn.Module):
    """The smallest model that the losses train, with a module that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(16, 8).double() for _ in range(2))
        self.scale, self.bias = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (2.0, -1.0))

    def forward(self, images, texts, loss, micro_batch: int, **options) -> torch.Tensor:
        features = [
            in_micro_batches(lambda rows, tower=tower: normalize(tower(rows), dim=1), micro_batch, rows)
            for tower, rows in ((self.image, images), (self.text, texts))
        ]
        return loss(*features, self.scale.exp(), logit_bias=self.bias, **options)


def check_model(rank: int) -> None:
    """`DistributedDataParallel` gives each process the gradients of the joined batch."""
    images, texts = pairs(6)
    cases = [(contrastive_loss, {"local_loss": local, "chunk_size": size}) for local in (0, 1) for size in (None, 2)]
    cases += [(sigmoid_loss, {"chunk_size": size}) for size in (None, 2)]
    for (loss, options), split, micro_batch in itertools.product(cases, SPLITS[:3], (10, 2)):
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        single, model = TwoTowers(), DistributedDataParallel(TwoTowers())
        single(images, texts, loss, 10, gather=False).backward()
        model(images[own], texts[own], loss, micro_batch, **options).backward()
        for (name, expected), parameter in zip(single.named_parameters(), model.parameters()):
            torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-10, rtol=0, msg=f"{name} {split}")


def check_queue(rank: int) -> None:
    """Every process has the rows of all, in the order of their ranks."""
    queue, alone = NegativeQueue(7, 16, with_ids=True), NegativeQueue(7, 16, with_ids=True)
    for module in (queue, alone):
        torch.manual_seed(0)
        module.reset_parameters()
    rows, ids = pairs(12, dtype=torch.float32)[0], torch.arange(12)
    start = 0
    for split in ([2, 3], [1, 0], [3, 3], [5, 7]):  # the last is more than it holds
        start = 0 if sum(split) > 7 else start
        own = slice(start + sum(split[:rank]), start + sum(split[: rank + 1]))
        queue.push(rows[own], ids[own])
        for row in range(start, start + sum(split)):
            alone.features[alone.pointer], alone.ids[alone.pointer] = rows[row], ids[row]
            alone.pointer.copy_((alone.pointer + 1) % 7)
        start += sum(split)
        for name, buffer in alone.state_dict().items():
            torch.testing.assert_close(queue.state_dict()[name], buffer)


def check_gather(rank: int) -> None:
    for split, dtype in itertools.product(SPLITS, (torch.float32, torch.bfloat16)):
        everything = torch.arange(12.0, dtype=dtype).view(6, 2)
        own = slice(sum(split[:rank]), sum(split[: rank + 1]))
        rows = everything[own].clone().requires_grad_()
        joined = gather(rows)
        torch.testing.assert_close(joined.detach(), everything)
        (joined * (1 + rank) * everything).sum().backward()
        torch.testing.assert_close(rows.grad, (1 + 2) * everything[own])
        assert not gather(rows, with_grad=False).requires_grad
        assert gather(torch.arange(split[rank])).tolist() == [*range(split[0]), *range(split[1])]


CHECKS = (check_gather, check_losses, check_detached_sigmoid, check_model, check_queue)


def process(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    for check_one in CHECKS:
        check_one(rank)
    distributed.barrier()  # one that leaves first makes gloo abort in the other now and then
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(process, (str(tmp_path / "store"),), nprocs=WORLD)


def test_a_single_process_keeps_its_rows():
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather(rows) is rows
    assert not gather(rows, with_grad=False).requires_grad


def test_a_group_of_one_process_exchanges_nothing(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        rows = torch.ones(2, 3, requires_grad=True)
        assert gather(rows) is rows
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("size, batches", [(4, (3, 3, 2)), (5, (5, 5)), (3, (8,)), (1, (2, 1))])
def test_the_queue_goes_round(size, batches):
    queue = NegativeQueue(size, 2, with_ids=True)
    written = torch.arange(2.0 * sum(batches)).view(-1, 2)
    start = 0
    for batch in batches:
        queue.push(written[start : start + batch], torch.arange(start, start + batch))
        start += batch
    order = torch.arange(start - min(size, start), start)
    assert queue.pointer.tolist() == [start % size]
    torch.testing.assert_close(queue.features[order % size], written[order])
    assert queue.ids[order % size].tolist() == order.tolist()
