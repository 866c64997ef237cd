"""Attention against the formula written out, on every path that `attend` may choose, and its caches."""

from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hfvlm.nn import attention
from hfvlm.nn.attention import CrossAttention, SelfAttention, attend, matmul_attention


DIM, HEADS = 24, 3
close = {"rtol": 1e-5, "atol": 1e-6}


def config(implementation: str = "sdpa") -> SimpleNamespace:
    return SimpleNamespace(_attn_implementation=implementation)


def self_attention(**kwargs) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(config(), DIM, HEADS, layer_idx=0, **kwargs).eval()


def cross_attention(**kwargs) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(config(), DIM, HEADS, memory_dim=40, layer_idx=0, **kwargs).eval()


def reference(query, key, value, allowed=None):
    """softmax(QK / sqrt(d)) V with loops over heads; `[length, heads, head_dim]` in and out."""
    outputs = []
    for head in range(query.shape[1]):
        scores = query[:, head] @ key[:, head].T / query.shape[-1] ** 0.5
        if allowed is not None:
            scores[~allowed] = -torch.inf
        outputs.append(scores.softmax(-1) @ value[:, head])
    return torch.stack(outputs, dim=1)


@pytest.fixture(params=["matmul", "sdpa"])
def path(request, monkeypatch):
    """Forces the kernel that `attend` takes on CPU."""
    limit = 10**6 if request.param == "matmul" else 0
    monkeypatch.setattr(attention, "CPU_MATMUL_QUERIES", dict.fromkeys(attention.CPU_MATMUL_QUERIES, limit))
    return request.param


@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_the_formula(path, causal):
    module = self_attention(causal=causal)
    hidden = torch.randn(2, 7, DIM)
    mask = torch.ones(7, 7).tril().bool()[None, None] if causal else None
    outputs, _ = module(hidden, attention_mask=mask)
    for row, output in zip(hidden, outputs):
        query, key, value = (part.view(7, HEADS, -1) for part in module.qkv(row).chunk(3, dim=-1))
        expected = reference(query, key, value, mask[0, 0] if causal else None)
        torch.testing.assert_close(output, module.proj(expected.flatten(1)), **close)


def masks() -> dict[str, torch.Tensor | None]:
    """Every form that transformers' mask functions give, for `[2, heads, 5, 9]` scores."""
    torch.manual_seed(1)
    padding = torch.ones(2, 1, 1, 9).bool()
    padding[1, ..., 6:] = False
    full = (torch.rand(2, 1, 5, 9) > 0.4) | torch.eye(5, 9).bool()
    additive = torch.zeros(2, 1, 5, 9).masked_fill(~full, torch.finfo(torch.float32).min)
    return {
        "none": None,
        "padding": padding,
        "boolean": full,
        "a head each": full.expand(2, HEADS, 5, 9).clone(),
        "one for all rows": full[:1],
        "additive": additive,
        "bias": torch.randn(1, HEADS, 5, 9),
    }


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrix_products_equal_sdpa_with_every_mask(name, dtype):
    mask = masks()[name]
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    module = cross_attention()
    query, key, value = (torch.randn(2, HEADS, length, 8, dtype=dtype) for length in (5, 9, 9))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    context, weights = matmul_attention(module, query, key, value, mask)
    torch.testing.assert_close(context, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 5, dtype=dtype))
    if mask is not None and mask.dtype == torch.bool:
        assert not weights.masked_select(~mask).any()


def test_a_row_that_may_attend_to_nothing_is_finite():
    """As the queries of left padding are."""
    query = torch.randn(1, HEADS, 2, 8)
    nothing = torch.zeros(1, 1, 2, 2).bool()
    assert matmul_attention(self_attention(), query, query, query, nothing)[0].isfinite().all()


@pytest.mark.parametrize("dtype", attention.CPU_MATMUL_QUERIES)
def test_few_queries_on_cpu_take_matrix_products_and_many_take_sdpa(monkeypatch, dtype):
    taken = []
    monkeypatch.setattr(
        attention.ALL_ATTENTION_FUNCTIONS,
        "get_interface",
        lambda name, default: taken.append(name) or default,
    )
    module = cross_attention()
    few = attention.CPU_MATMUL_QUERIES[dtype]
    for queries in (1, few, few + 1):
        memory = torch.randn(2, 1, HEADS, 4, 8, dtype=dtype)
        attend(module, torch.randn(1, HEADS, queries, 8, dtype=dtype), *memory, None)
    assert taken == ["eager", "eager", "sdpa"]


def test_causal_attention_without_a_mask_stays_causal(path):
    """sdpa takes `is_causal`; the matrix products know no such flag and must not be chosen."""
    module = self_attention(causal=True)
    hidden = torch.randn(1, 4, DIM)
    tril = torch.ones(4, 4).tril().bool()[None, None]
    torch.testing.assert_close(module(hidden)[0], module(hidden, attention_mask=tril)[0], **close)


@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("length", [1, 5])
def test_rows_that_share_a_memory_equal_the_memory_repeated(path, texts, length):
    module = cross_attention()
    hidden, memory = torch.randn(2 * texts, length, DIM), torch.randn(2, 6, 40)
    shared, _ = module(hidden, memory)
    repeated, _ = module(hidden, memory.repeat_interleave(texts, dim=0))
    torch.testing.assert_close(shared, repeated, **close)


def test_the_memory_mask_belongs_to_the_memory(path):
    module = cross_attention()
    hidden, memory = torch.randn(6, 4, DIM), torch.randn(2, 6, 40)
    mask = torch.ones(2, 1, 1, 6).bool()
    mask[1, ..., 4:] = False
    outputs, _ = module(hidden, memory, mask)
    torch.testing.assert_close(outputs[:3], module(hidden[:3], memory[:1])[0], **close)
    torch.testing.assert_close(outputs[3:], module(hidden[3:], memory[1:, :4])[0], **close)


def test_sdpa_has_no_weights_whatever_the_kernel(path):
    for module, memory in ((self_attention(), ()), (cross_attention(), (torch.randn(2, 5, 40),))):
        assert module(torch.randn(2, 3, DIM), *memory)[1] is None


def test_weights_come_a_text_each():
    module = cross_attention()
    module.config = config("eager")
    hidden, memory = torch.randn(6, 4, DIM), torch.randn(2, 5, 40)
    _, weights = module(hidden, memory)
    assert weights.shape == (6, HEADS, 4, 5)
    for i in range(6):
        alone = module(hidden[i : i + 1], memory[i // 3 : i // 3 + 1])[1]
        torch.testing.assert_close(weights[i : i + 1], alone, **close)


def test_texts_must_be_a_multiple_of_the_images():
    with pytest.raises(ValueError, match="3 text rows cannot be shared evenly among 2 images"):
        cross_attention()(torch.randn(3, 4, DIM), torch.randn(2, 5, 40))


def test_width_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match=r"hidden_size \(24\) must be a multiple of num_attention_heads \(5\)"):
        SelfAttention(config(), 24, 5)


def test_cached_self_attention_equals_uncached(path):
    module = self_attention(causal=True)
    hidden = torch.randn(2, 6, DIM)
    whole, _ = module(hidden)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first, _ = module(hidden[:, :3], past_key_values=cache)
    steps = [module(hidden[:, i : i + 1], past_key_values=cache)[0] for i in range(3, 6)]
    torch.testing.assert_close(torch.cat([first, *steps], dim=1), whole, **close)
    assert cache.self_attention_cache.get_seq_length() == 6


def test_cached_memory_is_projected_once_and_needed_no_more(path):
    module = cross_attention()
    hidden, memory = torch.randn(4, 3, DIM), torch.randn(2, 6, 40)
    whole, _ = module(hidden, memory)
    projected = []
    module.kv.register_forward_hook(lambda *_: projected.append(1))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    first, _ = module(hidden[:, :1], memory, past_key_values=cache)
    rest, _ = module(hidden[:, 1:], None, past_key_values=cache)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, **close)
    assert projected == [1]
    assert cache.cross_attention_cache.layers[0].keys.shape == (2, HEADS, 6, DIM // HEADS)


def test_dropout_is_for_training_only():
    module = self_attention(dropout=0.5)
    hidden = torch.randn(1, 20, DIM)
    assert torch.equal(module(hidden)[0], module(hidden)[0])
    module.train()
    assert not torch.equal(module(hidden)[0], module(hidden)[0])
