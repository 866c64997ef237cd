"""BERT tower: an encoder, an encoder with cross-attention, a causal decoder with both kinds of cache, or all in one.

BERT, https://arxiv.org/abs/1810.04805; cross-attention between self-attention and MLP as in ALBEF and BLIP. BLIP's
encoder and decoder differ in nothing but their self-attention, so they are one tower whose layers have two.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import BertTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.activation import activation
from hfvlm.nn.attention import CrossAttention, SelfAttention, pick
from hfvlm.nn.groups import RowGroups
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
    """Self-attention, cross-attention if the layer has it and there is a memory, MLP; a norm after each residual.

    Args:
        direction: "bidirectional", "causal", or "both" for a layer with a self-attention of each kind.
        owner: a layer whose cross-attention this one's shares keys and values with.
    """

    def __init__(self, config: BertTowerConfig, layer_idx: int, direction: str, owner: "BertLayer | None" = None):
        super().__init__()
        dim, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        common = {"dropout": config.attention_probs_dropout_prob, "layer_idx": layer_idx}
        if direction != "causal":
            self.attention = SelfAttention(config, dim, heads, **common)
            self.attention_norm = nn.LayerNorm(dim, eps=eps)
        if direction != "bidirectional":
            self.causal_attention = SelfAttention(config, dim, heads, causal=True, **common)
            self.causal_attention_norm = nn.LayerNorm(dim, eps=eps)
        self.fuses = config.encoder_hidden_size is not None and layer_idx >= config.fusion_layer
        if self.fuses:
            self.cross_attention = CrossAttention(
                config,
                dim,
                heads,
                memory_dim=config.encoder_hidden_size,
                owner=None if owner is None else owner.cross_attention,
                **common,
            )
            self.cross_attention_norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, config.intermediate_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        causal_mask: torch.Tensor | None,
        first_causal: int | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        fuse: bool,
        groups: RowGroups | None = None,
        past_key_values: Cache | None = None,
        only: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        if first_causal is None:
            hidden_states = self._read(hidden_states, attention_mask, past_key_values, only, **kwargs)
        elif first_causal == 0:
            hidden_states = self._read_causally(hidden_states, causal_mask, past_key_values, **kwargs)
        else:
            both = self._read(hidden_states[:first_causal], attention_mask, **kwargs)
            causal = self._read_causally(hidden_states[first_causal:], causal_mask, **kwargs)
            hidden_states = torch.cat([both, causal])
        if fuse and self.fuses:
            update = self._look(
                hidden_states, encoder_hidden_states, encoder_attention_mask, past_key_values, groups, **kwargs
            )
            hidden_states = self.cross_attention_norm(hidden_states + self.dropout(update))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))

    def _look(self, hidden_states: torch.Tensor, memory: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """What cross-attention adds."""
        return self.cross_attention(hidden_states, memory, *args, **kwargs)[0]

    def _read(
        self,
        rows: torch.Tensor,
        mask: torch.Tensor | None,
        cache: Cache | None = None,
        only: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        update, _ = self.attention(rows, mask, cache, only, **kwargs)
        rows = rows if only is None else pick(rows, only)
        return self.attention_norm(rows + self.dropout(update))

    def _read_causally(
        self, rows: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None = None, **kwargs
    ) -> torch.Tensor:
        update, _ = self.causal_attention(rows, mask, cache, **kwargs)
        return self.causal_attention_norm(rows + self.dropout(update))


class MergingBertLayer(BertLayer):
    """A layer with a cross-attention for each of two images, whose outputs are averaged, or from
    `config.merge_layer` on merged by a linear layer. BLIP's form of reading two images."""

    def __init__(self, config: BertTowerConfig, layer_idx: int, direction: str):
        super().__init__(config, layer_idx, direction)
        dim, heads, width = config.hidden_size, config.num_attention_heads, config.encoder_hidden_size
        dropout = config.attention_probs_dropout_prob
        self.second_cross_attention = CrossAttention(
            config, dim, heads, memory_dim=width, dropout=dropout, layer_idx=layer_idx
        )
        self.merge = Linear(2 * dim, dim) if layer_idx >= config.merge_layer else None

    def _look(self, hidden_states: torch.Tensor, memory: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        both = [
            attention(hidden_states, image, *args, **kwargs)[0]
            for attention, image in zip((self.cross_attention, self.second_cross_attention), memory)
        ]
        return sum(both) / 2 if self.merge is None else self.merge(torch.cat(both, dim=-1))


#: which self-attention a tower's layers have
DIRECTIONS = ("bidirectional", "causal", "both")
#: implementations of attention whose masks have a row for each query, or one for all
QUERY_MASKS = ("eager", "sdpa")
#: how fusion layers may read two images
PAIRINGS = (None, "alternate", "merge")


class BertTower(VlmPreTrainedModel):
    """Tokens to features: `[batch, length]` -> `[batch, length, hidden_size]`.

    Args:
        direction: "bidirectional" (an encoder), "causal" (a decoder), or "both": layers with a self-attention of each
            kind, which share all else. None: as `config.is_decoder` says.
        pairing: how the fusion layers read two images. "alternate" (ALBEF): each is there twice, one looks at the
            first image, the other at the second, and they share the projection of keys and values. "merge" (BLIP):
            each has two cross-attentions. What is there twice starts as a copy, so that weights of a tower that reads
            one image are a start for one that reads two. None: they read one.
    """

    config_class = BertTowerConfig
    input_modalities = ("text",)
    _no_split_modules = ["BertLayer"]
    _can_record_outputs = {
        "hidden_states": BertLayer,
        "attentions": OutputRecorder(SelfAttention, index=1),
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: BertTowerConfig, direction: str | None = None, pairing: str | None = None):
        super().__init__(config)
        self.direction = direction or ("causal" if config.is_decoder else "bidirectional")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        if pairing not in PAIRINGS:
            raise ValueError(f"pairing must be 'alternate', 'merge' or None, got {pairing!r}")
        self.pairing = pairing
        self.embeddings = BertEmbeddings(config)
        fusing = MergingBertLayer if pairing == "merge" else BertLayer
        self.layers = nn.ModuleList(
            (BertLayer if i < config.fusion_layer else fusing)(config, i, self.direction)
            for i in range(config.num_hidden_layers)
        )
        if pairing == "alternate":
            first = config.fusion_layer
            self.second_layers = nn.ModuleList(
                BertLayer(config, first + i, self.direction, owner=layer)
                for i, layer in enumerate(self.layers[first:])
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        twins = []
        if isinstance(module, MergingBertLayer):
            twins = [(module.cross_attention, module.second_cross_attention)]
        elif isinstance(module, BertTower) and module.pairing == "alternate":
            twins = list(zip(module.layers[module.config.fusion_layer :], module.second_layers))
        for one, other in twins:
            source = one.state_dict()
            for name, copy in other.state_dict(keep_vars=True).items():
                init.copy_(copy, source[name])

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
        hidden_states: torch.Tensor | None = None,
        layers: tuple[int, int] | None = None,
        memory_index: torch.Tensor | None = None,
        causal_rows: int | None = None,
        only_position: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            input_ids: `[batch, length]`, or `inputs_embeds` `[batch, length, hidden_size]`, or `hidden_states`.
            attention_mask: `[batch, past + length]`, 1 where there is a token. Padding may be on either side:
                positions count tokens, not slots.
            encoder_hidden_states: `[images, tokens, encoder_hidden_size]`; `batch` is a multiple of `images`. For a
                tower that reads two, `[2, images, tokens, encoder_hidden_size]`.
            encoder_attention_mask: `[images, tokens]`.
            past_key_values: a cache; an `EncoderDecoderCache` keeps the memory's keys and values too.
            hidden_states: `[batch, length, hidden_size]`, what earlier layers made, to go on from.
            layers: run those from the first number up to, without, the second; None: all.
            memory_index: `[batch]`, long: the row of `encoder_hidden_states` that each text reads; None: as many
                texts an image, in order.
            causal_rows: in a tower of "both" directions, the last so many texts are read causally; None: none.
            only_position: `[batch]`, long: the one position of each text that is wanted; the last layer makes no
                other. Not for texts that are read causally.

        Returns:
            `last_hidden_state` `[batch, length, hidden_size]`, with `only_position` `[batch, 1, hidden_size]`.
        """
        given = [tokens for tokens in (input_ids, inputs_embeds, hidden_states) if tokens is not None]
        if len(given) != 1:
            raise ValueError("pass exactly one of input_ids, inputs_embeds and hidden_states")
        tokens = given[0]
        if tokens.ndim != (2 if input_ids is not None else 3):
            raise ValueError(f"input_ids must have shape [batch, length], got {list(tokens.shape)}")
        batch, length = tokens.shape[:2]
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past, int) and not torch.compiler.is_compiling():  # a static cache's count is on the device
            self._check_length(attention_mask, past + length)
        if hidden_states is None:
            if position_ids is None:
                position_ids = self.positions(attention_mask, past, length, tokens.device)
            hidden_states = self.embeddings(position_ids, input_ids, inputs_embeds, token_type_ids)
        memory_cached = isinstance(past_key_values, EncoderDecoderCache) and past_key_values.is_updated.get(
            self.config.fusion_layer, False
        )
        fuse = encoder_hidden_states is not None or memory_cached
        if fuse and self.config.encoder_hidden_size is None:
            raise ValueError("encoder_hidden_states need a tower with cross-attention: set encoder_hidden_size")
        if fuse and self.pairing is not None and (encoder_hidden_states.ndim != 4 or len(encoder_hidden_states) != 2):
            raise ValueError(
                "this tower reads two images: encoder_hidden_states must be [2, images, tokens, width], got "
                f"{list(encoder_hidden_states.shape)}"
            )
        groups = None
        if memory_index is not None and fuse:
            groups = RowGroups(memory_index, encoder_hidden_states.shape[-3])
        first_causal = self._first_causal(causal_rows, batch)
        if only_position is not None and first_causal is not None:
            raise ValueError("only_position is for texts that are read in both directions, these are read causally")
        masks = self._masks(hidden_states, attention_mask, first_causal, past_key_values)
        if encoder_attention_mask is not None and encoder_hidden_states is not None:
            encoder_attention_mask = create_bidirectional_mask(
                self.config, encoder_hidden_states[:, :1], encoder_attention_mask, encoder_hidden_states
            )
        numbers = range(*slice(*(layers or (None,))).indices(len(self.layers)))
        steps = [step for i in numbers for step in self._steps(i, encoder_hidden_states)]
        plain = attention_mask is None or attention_mask.ndim == 2  # no token sees less than another
        narrow = only_position is not None and steps and plain and self.config._attn_implementation in QUERY_MASKS
        for number, (layer, memory) in enumerate(steps, 1):
            last = {"only": only_position} if narrow and number == len(steps) else {}
            hidden_states = layer(
                hidden_states,
                *masks,
                first_causal,
                memory,
                encoder_attention_mask,
                fuse,
                groups,
                past_key_values=past_key_values,
                **last,
                **kwargs,
            )
        if only_position is not None and not narrow:
            hidden_states = pick(hidden_states, only_position)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )

    def _steps(self, i: int, memory: torch.Tensor | None) -> list[tuple[BertLayer, torch.Tensor | None]]:
        """The layer of a number and what it reads; where two images are read in turn, twice."""
        second = i - self.config.fusion_layer
        if self.pairing != "alternate" or memory is None or second < 0:
            return [(self.layers[i], memory)]
        return [(self.layers[i], memory[0]), (self.second_layers[second], memory[1])]

    def _first_causal(self, asked: int | None, batch: int) -> int | None:
        """The first causal row, 0 where all are; None: none is."""
        if self.direction != "both":
            causal = self.direction == "causal"
            if asked is not None and asked != (batch if causal else 0):
                raise ValueError(f"causal_rows is for a tower of both directions; this one is {self.direction}")
            return 0 if causal else None
        if asked is not None and not 0 <= asked <= batch:
            raise ValueError(f"causal_rows must be between 0 and the {batch} rows, got {asked}")
        return batch - asked if asked else None

    def _masks(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None, first_causal: int | None, cache: Cache | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The masks of the rows that see all tokens, and of those from `first_causal` on, which see those before."""
        if first_causal is None:
            return create_bidirectional_mask(self.config, hidden_states, mask), None
        if first_causal == 0:
            return None, create_causal_mask(self.config, hidden_states, mask, cache)
        masks = (None, None) if mask is None else (mask[:first_causal], mask[first_causal:])
        return (
            create_bidirectional_mask(self.config, hidden_states[:first_causal], masks[0]),
            create_causal_mask(self.config, hidden_states[first_causal:], masks[1], cache),
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
