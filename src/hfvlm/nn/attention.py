"""Multi-head attention: one sequence attending to itself, or to a memory that several sequences share.

Every attention of hfvlm goes through transformers' attention interface (`sdpa` unless the config asks for another),
and `attend` is the one place that picks the kernel.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hfvlm.nn.groups import RowGroups
from hfvlm.nn.linear import Linear


# On CPU, scaled_dot_product_attention loses to two plain matrix products up to this many query rows a memory, and wins
# above (examples/benchmarks/attention.py prints the table).
CPU_MATMUL_QUERIES = {torch.float32: 3, torch.bfloat16: 32}


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as two matrix products: the `eager` entry of the interface, and the only one that returns weights.

    Args:
        query: `[batch, heads, queries, head_dim]`; `key` and `value`: `[batch, heads, keys, head_dim]`.
        attention_mask: additive or boolean (True: may attend), broadcastable to `[batch, heads, queries, keys]`.

    Returns:
        context `[batch, queries, heads, head_dim]`, weights `[batch, heads, queries, keys]`.
    """
    scores = torch.matmul(query * (scaling if scaling is not None else query.shape[-1] ** -0.5), key.transpose(2, 3))
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if dropout and module.training:
        weights = nn.functional.dropout(weights, p=dropout)
    return torch.matmul(weights, value).transpose(1, 2), weights


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs the attention function that the config names; on CPU, few queries take the matrix products instead.

    Shapes as in `matmul_attention`; weights are None unless the implementation that the config names returns them.
    """
    implementation = named = module.config._attn_implementation
    if (
        implementation == "sdpa"
        and query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and query.shape[2] <= CPU_MATMUL_QUERIES.get(query.dtype, 0)
        and (query.shape[2] == 1 or not module.is_causal or attention_mask is not None)
    ):
        implementation = "eager"
    function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, matmul_attention)
    context, weights = function(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout if module.training else 0.0,
        scaling=module.scaling,
        **kwargs,
    )
    return context, weights if implementation == named else None  # not some calls with weights and some without


def pick(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One position of each row: `[batch, length, ...]`, `[batch]` -> `[batch, 1, ...]`."""
    return states[torch.arange(positions.shape[0], device=states.device), positions][:, None]


class _MultiHead(nn.Module):
    """What both kinds of attention share: heads, the output projection, and what the attention interface reads."""

    num_key_value_groups = 1

    def __init__(self, config, dim: int, num_heads: int, dropout: float, causal: bool, layer_idx: int | None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden_size ({dim}) must be a multiple of num_attention_heads ({num_heads})")
        self.config = config
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = dropout
        self.is_causal = causal
        self.layer_idx = layer_idx
        self.proj = Linear(dim, dim)

    def split(self, projected: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """`[batch, length, parts * dim]` -> `parts` tensors `[batch, heads, length, head_dim]`, without a copy."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


class SelfAttention(_MultiHead):
    """A sequence attends to itself; query, key and value come from one matrix product (`qkv`).

    Args:
        config: the tower's config; its `_attn_implementation` names the attention function.
        causal: each token sees only itself and the ones before it (the caller's mask adds padding).
        layer_idx: this layer's slot in a key/value cache.
    """

    def __init__(self, config, dim, num_heads, *, bias=True, dropout=0.0, causal=False, layer_idx=None):
        super().__init__(config, dim, num_heads, dropout, causal, layer_idx)
        self.qkv = Linear(dim, 3 * dim, bias=bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        only: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`hidden_states` `[batch, length, dim]` -> the same shape, and the weights if the implementation has them.

        With `only` `[batch]`, long, just these positions look around: `[batch, 1, dim]`; no token may see less than
        another then.
        """
        query, key, value = self.split(self.qkv(hidden_states), 3)
        if only is not None:
            query = pick(query.transpose(1, 2), only).transpose(1, 2)
            attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
        if past_key_values is not None:
            if isinstance(past_key_values, EncoderDecoderCache):
                past_key_values = past_key_values.self_attention_cache
            key, value = past_key_values.update(key, value, self.layer_idx)
        context, weights = attend(self, query, key, value, attention_mask, self.dropout, **kwargs)
        return self.proj(context.flatten(2)), weights


class CrossAttention(_MultiHead):
    """Sequences attend to a memory (an image's tokens); `g` sequences may share one memory.

    With `hidden_states` of batch `n * g` and a memory of batch `n`, rows `i * g ... i * g + g - 1` read memory `i`:
    the beams, sampled captions or candidate answers of one image; `RowGroups` name any other arrangement. The memory's
    keys and values are projected once, kept once in the cross half of the cache, and never repeated: the `g` query
    sets become one set of `g * length` queries against them.

    Args:
        memory_dim: width of the memory's tokens.
        owner: another one whose projection of keys and values this one uses.
    """

    def __init__(self, config, dim, num_heads, *, memory_dim, bias=True, dropout=0.0, layer_idx=None, owner=None):
        super().__init__(config, dim, num_heads, dropout, False, layer_idx)
        self.q = Linear(dim, dim, bias=bias)
        self.owner = None if owner is None else (owner,)  # in a tuple, so that it is no part of this module
        if owner is None:
            self.kv = Linear(memory_dim, 2 * dim, bias=bias)

    def keys_and_values(
        self, memory: torch.Tensor | None, past_key_values: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory's keys and values `[n, heads, tokens, head_dim]`: from the cache if they are in it."""
        cached = isinstance(past_key_values, EncoderDecoderCache)
        if cached and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        projection = self.kv if self.owner is None else self.owner[0].kv
        key, value = self.split(projection(memory), 2)
        if cached:
            key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        memory: torch.Tensor | None,
        memory_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        groups: RowGroups | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: `[n * g, length, dim]`, or `[rows, length, dim]` with `groups`.
            memory: `[n, tokens, memory_dim]`; may be None once the cache holds its keys and values.
            memory_mask: as `attend` takes it, `[n, 1, 1, tokens]`.
            groups: which memory each row reads; None: `g` rows each, in order.

        Returns:
            The shape of `hidden_states`, and the weights `[rows, heads, length, tokens]` if the implementation has
            them.
        """
        rows, length, dim = hidden_states.shape
        key, value = self.keys_and_values(memory, past_key_values)
        n = key.shape[0]
        query = self.q(hidden_states)
        if groups is not None:
            query, slots = groups.spread(query), groups.size
        elif rows % n == 0:
            slots = rows // n
        else:
            raise ValueError(f"{rows} text rows cannot be shared evenly among {n} images: input_ids needs a multiple")
        query = query.view(n, slots * length, self.num_heads, self.head_dim).transpose(1, 2)
        context, weights = attend(self, query, key, value, memory_mask, self.dropout, **kwargs)
        context = context.reshape(n * slots, length, dim)
        if weights is not None and slots > 1:  # of one text an image they stay what the context was made with
            weights = weights.unflatten(2, (slots, length)).transpose(1, 2).flatten(0, 1)
        if groups is not None:
            context, weights = groups.collect(context), None if weights is None else groups.collect(weights)
        return self.proj(context), weights
