"""The pre-norm transformer block of every ViT and of CLIP's text tower."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hfvlm.nn.attention import SelfAttention
from hfvlm.nn.mlp import Mlp


class PreNormBlock(GradientCheckpointingLayer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; `[batch, tokens, dim]` in and out.

    Args:
        config: of a tower; `hidden_size`, `intermediate_size`, `num_attention_heads`, `hidden_act`,
            `layer_norm_eps`, `attention_dropout` and, if it has one, `hidden_dropout_prob` are read.
        causal: each token sees only itself and the ones before it (the caller's mask says so to eager attention).
    """

    def __init__(self, config, causal: bool = False):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(
            config, dim, config.num_attention_heads, dropout=config.attention_dropout, causal=causal
        )
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, config.intermediate_size, config.hidden_act)
        self.dropout = nn.Dropout(getattr(config, "hidden_dropout_prob", 0.0))

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs):
        update, _ = self.attn(self.norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(update)
        return hidden_states + self.dropout(self.mlp(self.norm2(hidden_states)))
