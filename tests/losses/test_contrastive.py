"""The contrastive losses against loops over pairs, and their chunked forms against the plain ones."""

import math
import warnings

import pytest
import torch
from features import loss_and_gradients, pairs
from torch.utils._python_dispatch import TorchDispatchMode

from hfvlm.losses import chunked
from hfvlm.losses.contrastive import contrastive_loss, info_nce, sigmoid_loss


SCALE, BIAS = torch.tensor(9.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
IDS = torch.tensor([3, 1, 3, -100, -100, 2, 3])


def row_loss(query, keys, shares, smoothing: float = 0.0, scale=SCALE) -> torch.Tensor:
    """Cross entropy of one row, a key at a time."""
    logits = [scale * (query * key).sum() for key in keys]
    total = sum(logit.exp() for logit in logits).log()
    shares = [(1 - smoothing) * share + smoothing / len(keys) for share in shares]
    return sum(share * (total - logit) for share, logit in zip(shares, logits))


def match_shares(ids, i: int, count: int, queue_ids=()) -> list[float]:
    """How much each of `count` keys counts for row i."""
    keys = [*ids.tolist(), *queue_ids]
    matches = [j == i or (keys[i] == keys[j] != -100) for j in range(len(keys))] + [False] * (count - len(keys))
    return [match / sum(matches) for match in matches]


def by_loop(images, texts, ids=None, queue=None, soft=None, smoothing: float = 0.0) -> torch.Tensor:
    ids = torch.arange(len(images)) if ids is None else ids
    total = 0.0
    for side, (rows, keys) in enumerate(((images, texts), (texts, images))):
        if queue is not None:
            keys = torch.cat([keys, queue[1 - side]])
        for i, row in enumerate(rows):
            queue_ids = queue[2].tolist() if queue is not None and len(queue) == 3 else ()
            shares = match_shares(ids, i, len(keys), queue_ids) if soft is None else soft[side][i].tolist()
            total = total + row_loss(row, keys, shares, smoothing)
    return total / (2 * len(images))


def soft_targets(rows: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(2, rows, keys, generator=draw, dtype=torch.float64).unbind(0)


QUEUE = (*pairs(5, seed=9), torch.tensor([3, -100, 2, 9, 9]))
CASES = {
    "plain": ({}, {}),
    "ids": ({"image_ids": IDS}, {"ids": IDS}),
    "smoothing": ({"label_smoothing": 0.2}, {"smoothing": 0.2}),
    "ids and smoothing": ({"image_ids": IDS, "label_smoothing": 0.2}, {"ids": IDS, "smoothing": 0.2}),
    "queue": ({"queue": QUEUE[:2]}, {"queue": QUEUE[:2]}),
    "ids, queue without": ({"queue": QUEUE[:2], "image_ids": IDS}, {"queue": QUEUE[:2], "ids": IDS}),
    "ids, queue with": ({"queue": QUEUE, "image_ids": IDS}, {"queue": QUEUE, "ids": IDS}),
    "soft": ({"soft_targets": soft_targets(7, 7)}, {"soft": soft_targets(7, 7)}),
    "soft, queue": (
        {"soft_targets": soft_targets(7, 12), "queue": QUEUE, "label_smoothing": 0.1},
        {"soft": soft_targets(7, 12), "queue": QUEUE[:2], "smoothing": 0.1},
    ),
}


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 7, 100])
@pytest.mark.parametrize("case", CASES)
def test_softmax_is_the_loop(case, chunk_size):
    ours, loop = CASES[case]
    images, texts = pairs(7)
    expected = loss_and_gradients(by_loop, images, texts, **loop)
    actual = loss_and_gradients(
        lambda i, t: contrastive_loss(i, t, SCALE, chunk_size=chunk_size, **ours), images, texts
    )
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
@pytest.mark.parametrize("ids", [None, IDS], ids=["plain", "ids"])
def test_sigmoid_is_the_loop(ids, chunk_size):
    def by_loop(images, texts, scale, bias):
        total = 0.0
        for i, image in enumerate(images):
            shares = match_shares(torch.arange(7) if ids is None else ids, i, 7)
            for text, share in zip(texts, shares):
                logit = scale * (image * text).sum() + bias
                total = total + (1 + (-logit if share else logit).exp()).log()
        return total / len(images)

    inputs = (*pairs(7), SCALE, BIAS)
    actual = loss_and_gradients(sigmoid_loss, *inputs, image_ids=ids, chunk_size=chunk_size)
    torch.testing.assert_close(actual, loss_and_gradients(by_loop, *inputs), atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 14.3, 60.0, 100.0, 400.0])
@pytest.mark.parametrize("case", CASES)
def test_chunked_is_plain_at_every_scale(case, scale):
    def loss(images, texts, scale, bias, **options):
        return contrastive_loss(images, texts, scale, logit_bias=bias, **options)

    inputs = (*pairs(7), torch.tensor(scale, dtype=torch.float64), BIAS)
    plain = loss_and_gradients(loss, *inputs, **CASES[case][0])
    parts = loss_and_gradients(loss, *inputs, **CASES[case][0], chunk_size=3)
    torch.testing.assert_close(parts, plain, atol=1e-10, rtol=1e-10)


def test_chunked_is_plain_in_single_precision():
    images, texts = pairs(300, dim=32, dtype=torch.float32)
    for loss in (contrastive_loss, sigmoid_loss):
        for scale in (10.0, 100.0):
            inputs = images, texts, torch.tensor(scale)
            plain, parts = (loss_and_gradients(loss, *inputs, chunk_size=size) for size in (None, 64))
            torch.testing.assert_close(parts, plain, atol=1e-5, rtol=1e-5)


def both_ways(images, texts, scale):
    weights = torch.ones(len(images), dtype=images.dtype)
    return chunked.logsumexp_sum_both_ways(images, texts, scale, weights, weights, chunk_size=2)


@pytest.mark.parametrize(
    "sum_over_pairs",
    [
        both_ways,
        lambda q, k, s: chunked.logsumexp_sum(q, k, s, torch.rand(5, dtype=q.dtype), chunk_size=2),
        lambda q, k, s: chunked.softplus_sum(q, k, s, 0.5 * s, chunk_size=2),
    ],
    ids=["both ways", "one way", "softplus"],
)
def test_chunked_gradients_are_the_numerical_ones(sum_over_pairs):
    torch.manual_seed(0)
    inputs = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    inputs.append(torch.tensor(1.7, dtype=torch.float64, requires_grad=True))

    def repeatable(*tensors):
        torch.manual_seed(1)
        return 3.0 * sum_over_pairs(*tensors)

    assert torch.autograd.gradcheck(repeatable, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length, spread", [(1.0, "opposed"), (30.0, "aligned"), (40.0, "opposed"), (1e-3, "aligned")])
def test_logits_of_any_range_are_normalised(dtype, length, spread, monkeypatch):
    """Features that are not of length 1, and rows far below the bound: there the maxima are sought."""
    sought = []
    apart = chunked._apart
    monkeypatch.setattr(chunked, "_apart", lambda *args: sought.append(True) or apart(*args))
    images, texts = pairs(6, dtype=dtype)
    if spread == "opposed":  # the first image's best logit is the lowest that there can be
        texts = texts.clone()
        texts[:] = -images[0]
    images, texts, scale = length * images, length * texts, torch.tensor(150.0, dtype=dtype)

    def plain(images, texts, scale):
        logits = scale * images @ texts.t()
        return logits.logsumexp(0).sum() + logits.logsumexp(1).sum()

    expected = loss_and_gradients(plain, images, texts, scale)
    actual = loss_and_gradients(both_ways, images, texts, scale)
    assert all(torch.isfinite(tensor).all() for tensor in actual)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-6
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours, theirs, atol=tolerance * (1 + theirs.abs().max().item()), rtol=0)
    assert bool(sought) == (length > 1e-2 and (spread == "opposed" or length > 1.0))


def test_only_gradients_that_are_asked_for():
    images, texts = pairs(5)
    scale = SCALE.clone().requires_grad_()
    for loss in (contrastive_loss, sigmoid_loss):
        everything = loss_and_gradients(loss, images, texts, scale)
        for wanted in ((0,), (1,), (2,), (0, 2)):
            inputs = [x.detach().clone().requires_grad_(i in wanted) for i, x in enumerate((images, texts, scale))]
            gradients = torch.autograd.grad(loss(*inputs, chunk_size=2), [inputs[i] for i in wanted])
            torch.testing.assert_close(list(gradients), [everything[1 + i] for i in wanted])
        with torch.no_grad():
            value = loss(images, texts, scale, chunk_size=2)
        assert not value.requires_grad
        torch.testing.assert_close(value, everything[0])


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_half_precision_features_are_multiplied_in_full(loss, chunk_size):
    images, texts = (x.bfloat16() for x in pairs(9))
    exact = loss_and_gradients(loss, images.double(), texts.double(), torch.tensor(80.0, dtype=torch.float64))
    scale = torch.tensor(80.0)
    halves = loss_and_gradients(loss, images, texts, scale, chunk_size=chunk_size)
    assert halves[0].dtype == torch.float32 and halves[1].dtype == torch.bfloat16
    torch.testing.assert_close(halves[0].double(), exact[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(halves[1].double(), exact[1], atol=1e-4, rtol=1e-2)  # bf16's own rounding
    singles = images.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(singles, texts.float(), scale, chunk_size=chunk_size)
    value.backward()
    torch.testing.assert_close(value.detach(), halves[0])
    torch.testing.assert_close(singles.grad.double(), exact[1], atol=1e-4, rtol=1e-4)


def test_one_direction():
    images, texts = pairs(7)
    loop = sum(row_loss(image, texts, [float(i == j) for j in range(7)]) for i, image in enumerate(images)) / 7
    torch.testing.assert_close(info_nce(images, texts, SCALE), loop)
    torch.testing.assert_close(info_nce(images, texts, SCALE, torch.arange(7)), loop)
    torch.testing.assert_close(info_nce(images, texts, SCALE, torch.eye(7)), loop)
    both = (info_nce(images, texts, SCALE) + info_nce(texts, images, SCALE)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, SCALE), both)
    keys = torch.cat([texts, QUEUE[1]])
    smooth = info_nce(images[2:3], keys, SCALE, torch.tensor([2]), label_smoothing=0.1)
    torch.testing.assert_close(smooth, row_loss(images[2], keys, [float(j == 2) for j in range(12)], 0.1))
    with pytest.raises(ValueError, match="7 queries for 5 keys"):
        info_nce(images, QUEUE[1], SCALE)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_single_pair_is_no_error(chunk_size):
    images, texts = pairs(1)
    with pytest.warns(UserWarning, match="nothing to contrast.*batch size"):
        values = loss_and_gradients(contrastive_loss, images, texts, SCALE, chunk_size=chunk_size)
    for value in values:
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contrastive_loss(images, texts, SCALE, queue=QUEUE[:2], chunk_size=chunk_size) > 0
        assert sigmoid_loss(images, texts, SCALE, chunk_size=chunk_size) > 0


def test_a_single_pair_warns_once():
    images, texts = pairs(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            contrastive_loss(images, texts, SCALE)
    assert len(caught) == 1


def test_a_bias_has_a_gradient_of_zero():
    images, texts = pairs(4)
    for chunk_size in (None, 2):
        bias = BIAS.clone().requires_grad_()
        contrastive_loss(images, texts, SCALE, logit_bias=bias, chunk_size=chunk_size).backward()
        assert abs(bias.grad.item()) < 1e-12


def test_the_same_image_everywhere_is_as_good_as_it_gets():
    """With all rows alike, no arrangement of features is better than equal logits: log of their number."""
    images, texts = (torch.ones(4, 3, dtype=torch.float64) / math.sqrt(3) for _ in range(2))
    loss = contrastive_loss(images, texts, SCALE, image_ids=torch.zeros(4, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(4))


IMAGES, TEXTS = pairs(4)


@pytest.mark.parametrize(
    "message, change",
    [
        ("4 images and 3 texts", {"text_embeds": TEXTS[:3]}),
        (r"both be \[n, d\], got \[4, 16\] and \[4, 8\]", {"text_embeds": TEXTS[:, :8]}),
        (r"both be \[n, d\]", {"image_embeds": IMAGES[..., None], "text_embeds": TEXTS[..., None]}),
        ("no rows", {"image_embeds": IMAGES[:0], "text_embeds": TEXTS[:0]}),
        (r"logit_scale must be one number, got shape \[2\]", {"logit_scale": torch.ones(2)}),
        (r"image_ids must be \[4\].*got \[3\]", {"image_ids": torch.arange(3)}),
        ("label_smoothing must be", {"label_smoothing": 1.0}),
        ("chunk_size must be at least 1", {"chunk_size": 0}),
        ("gather must be True, False or 'detached', got 'all'", {"gather": "all"}),
        ("not both", {"image_ids": torch.arange(4), "soft_targets": soft_targets(4, 4)}),
        (r"soft_targets of an image must be \[4, 4\], got \[4, 5\]", {"soft_targets": soft_targets(4, 5)}),
        (r"queue must be image features \[k, 16\].*got \[5, 16\], \[5, 8\]", {"queue": (QUEUE[0], QUEUE[1][:, :8])}),
        (r"got \[5, 16\], \[5, 16\], \[4\]", {"queue": (*QUEUE[:2], torch.arange(4))}),
        (r"got \[5, 16\]$", {"queue": QUEUE[:1]}),
        ("got nothing", {"queue": ()}),
        ("soft_targets must be a pair.*got 1", {"soft_targets": soft_targets(4, 4)[:1]}),
    ],
)
def test_bad_input_is_named(message, change):
    arguments = {"image_embeds": IMAGES, "text_embeds": TEXTS, "logit_scale": SCALE, **change}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**arguments)


@pytest.mark.parametrize("loss", [contrastive_loss, sigmoid_loss])
@pytest.mark.parametrize("ids, kind", [(torch.tensor([0.1, 0.2, 0.3, 0.4]), "torch.float32"), ([0, 1, 2, 3], "list")])
def test_ids_are_integers(loss, ids, kind):
    with pytest.raises(TypeError, match=f"image_ids must be a tensor of integers .*got {kind}"):
        loss(IMAGES, TEXTS, SCALE, image_ids=ids)


class Kept(TorchDispatchMode):
    """The largest tensor that any operation returns, in numbers."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("options", [{}, {"image_ids": torch.arange(512) // 2, "label_smoothing": 0.1}], ids=str)
def test_the_matrix_of_logits_is_never_held(options):
    images, texts = pairs(512, dim=4)
    ids = {"image_ids": options["image_ids"]} if options else {}
    for loss, arguments in ((contrastive_loss, options), (sigmoid_loss, ids)):
        with Kept() as kept:
            loss_and_gradients(loss, images, texts, SCALE, chunk_size=16, **arguments)
        assert kept.largest == 16 * 512
        with Kept() as kept:
            loss_and_gradients(loss, images, texts, SCALE, **arguments)
        assert kept.largest >= 512 * 512
