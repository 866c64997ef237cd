"""BERT tower: an encoder, an encoder with cross-attention, or a causal decoder with both kinds of cache.

BERT, https://arxiv.org/abs/1810.04805; cross-attention between self-attention and MLP as in ALBEF and BLIP.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import BertTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.activation import activation
from hfvlm.nn.attention import CrossAttention, SelfAttention
from hfvlm.nn.linear import Linear
from hfvlm.nn.mlp import Mlp


class BertEmbeddings(nn.Module):
    """Words plus positions (plus token types), normed: `[batch, length]` -> `[batch, length, dim]`."""

    def __init__(self, config: BertTowerConfig):
        super().__init__()
        dim = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.position = nn.Embedding(config.max_position_embeddings, dim)
        self.token_type = nn.Embedding(config.type_vocab_size, dim) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        position_ids: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        embeddings = (self.word(input_ids) if inputs_embeds is None else inputs_embeds) + self.position(position_ids)
        if self.token_type is not None:
            if token_type_ids is None:
                token_type_ids = position_ids.new_zeros(1, 1)
            embeddings = embeddings + self.token_type(token_type_ids)
        return self.dropout(self.norm(embeddings))


class BertLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention if the layer has it and there is a memory, MLP; a norm after each residual."""

    def __init__(self, config: BertTowerConfig, layer_idx: int):
        super().__init__()
        dim, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        common = {"dropout": config.attention_probs_dropout_prob, "layer_idx": layer_idx}
        self.attention = SelfAttention(config, dim, heads, causal=config.is_decoder, **common)
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        if config.encoder_hidden_size is not None:
            self.cross_attention = CrossAttention(config, dim, heads, memory_dim=config.encoder_hidden_size, **common)
            self.cross_attention_norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, config.intermediate_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        fuse: bool,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        update, _ = self.attention(hidden_states, attention_mask, past_key_values, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(update))
        if fuse:
            update, _ = self.cross_attention(
                hidden_states, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
            hidden_states = self.cross_attention_norm(hidden_states + self.dropout(update))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class BertTower(VlmPreTrainedModel):
    """Tokens to features: `[batch, length]` -> `[batch, length, hidden_size]`."""

    config_class = BertTowerConfig
    input_modalities = ("text",)
    _no_split_modules = ["BertLayer"]
    _can_record_outputs = {
        "hidden_states": BertLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: BertTowerConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: `[batch, length]`, or `inputs_embeds` `[batch, length, hidden_size]`.
            attention_mask: `[batch, past + length]`, 1 where there is a token. Padding may be on either side:
                positions count tokens, not slots.
            encoder_hidden_states: `[images, tokens, encoder_hidden_size]`; `batch` is a multiple of `images`.
            encoder_attention_mask: `[images, tokens]`.
            past_key_values: a cache; an `EncoderDecoderCache` keeps the memory's keys and values too.

        Returns:
            `last_hidden_state` `[batch, length, hidden_size]`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        if tokens.ndim != (2 if inputs_embeds is None else 3):
            raise ValueError(f"input_ids must have shape [batch, length], got {list(tokens.shape)}")
        length = tokens.shape[1]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past, int) and not torch.compiler.is_compiling():  # a static cache's count is on the device
            self._check_length(attention_mask, past + length)
        if position_ids is None:
            position_ids = self.positions(attention_mask, past, length, tokens.device)
        hidden_states = self.embeddings(position_ids, input_ids, inputs_embeds, token_type_ids)
        memory_cached = isinstance(past_key_values, EncoderDecoderCache) and past_key_values.is_updated.get(0, False)
        fuse = encoder_hidden_states is not None or memory_cached
        if fuse and self.config.encoder_hidden_size is None:
            raise ValueError("encoder_hidden_states need a tower with cross-attention: set encoder_hidden_size")
        if self.config.is_decoder:
            mask = create_causal_mask(self.config, hidden_states, attention_mask, past_key_values)
        else:
            mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)
        if encoder_attention_mask is not None and encoder_hidden_states is not None:
            encoder_attention_mask = create_bidirectional_mask(
                self.config, encoder_hidden_states[:, :1], encoder_attention_mask, encoder_hidden_states
            )
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                encoder_attention_mask,
                fuse,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )

    def _check_length(self, attention_mask: torch.Tensor | None, length: int) -> None:
        """Refuses a mask that does not fit the `length` tokens so far, and texts beyond the position table."""
        limit, longest = self.config.max_position_embeddings, length
        if attention_mask is not None and attention_mask.ndim == 2:
            if attention_mask.shape[1] != length:
                raise ValueError(f"attention_mask {list(attention_mask.shape)} must cover the {length} tokens so far")
            if length > limit:  # padding takes no position
                longest = int(attention_mask.sum(-1).max())
        if longest > limit:
            raise ValueError(
                f"the text has {longest} tokens, this model reads {limit} (max_position_embeddings): shorten "
                "input_ids, or ask for fewer new tokens"
            )

    def positions(
        self, attention_mask: torch.Tensor | None, past: int, length: int, device: torch.device
    ) -> torch.Tensor:
        """Each token's number in its text, `[batch or 1, length]`: padding, left or right, does not count."""
        if attention_mask is None or attention_mask.ndim != 2:
            positions = (torch.arange(length, device=device) + past)[None]
        else:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return positions


class BertLmHead(nn.Module):
    """Features to vocabulary scores: `[..., hidden_size]` -> `[..., vocab_size]`; `decoder.weight` is tied."""

    def __init__(self, config: BertTowerConfig):
        super().__init__()
        dim = config.hidden_size
        self.dense = Linear(dim, dim)
        self.act = activation(config.hidden_act)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.decoder = Linear(dim, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.norm(self.act(self.dense(hidden_states))))
