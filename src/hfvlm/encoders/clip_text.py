"""CLIP's text transformer.

Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020; original code
https://github.com/openai/CLIP (MIT). The variants without a causal mask are those of
https://github.com/mlfoundations/open_clip.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import ClipTextTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import SelfAttention
from hfvlm.nn.block import PreNormBlock


class ClipTextTower(VlmPreTrainedModel):
    """Tokens to features: `[batch, length]` -> `[batch, length, hidden_size]` and one vector a text."""

    config_class = ClipTextTowerConfig
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _no_split_modules = ["PreNormBlock"]
    _can_record_outputs = {"hidden_states": PreNormBlock, "attentions": OutputRecorder(SelfAttention, index=1)}

    def __init__(self, config: ClipTextTowerConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, dim)
        self.position_embedding = nn.Parameter(torch.zeros(config.max_position_embeddings, dim))
        self.blocks = nn.ModuleList(PreNormBlock(config, config.causal) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config = self.config
        if isinstance(module, ClipTextTower):
            init.normal_(module.token_embedding.weight, std=0.02)
            init.normal_(module.position_embedding, std=0.01)
        elif isinstance(module, PreNormBlock):
            # the released code's: each branch's last layer is scaled down with the depth
            std = config.hidden_size**-0.5
            init.normal_(module.attn.qkv.weight, std=std)
            init.normal_(module.attn.proj.weight, std=std * (2 * config.num_hidden_layers) ** -0.5)
            init.normal_(module.mlp.fc1.weight, std=(2 * config.hidden_size) ** -0.5)
            init.normal_(module.mlp.fc2.weight, std=std * (2 * config.num_hidden_layers) ** -0.5)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.token_embedding = value

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: `[batch, length]`, each text from its start to its end token, then padding of any id.
            attention_mask: `[batch, length]`; says where the padding is. With a causal mask no token sees it, and this
                may be left out; without one all tokens see it, as in the originals: then padding must be
                `pad_token_id`, and is made so where this names it.

        Returns:
            `last_hidden_state` `[batch, length, hidden_size]`, normed; `pooler_output` `[batch, hidden_size]`.

        Raises:
            ValueError: padding on the left (positions count slots; only a mask on CPU is looked at), more tokens than
                there are positions, or ids that the vocabulary does not have (ids on CPU alone are looked at).
        """
        config = self.config
        self._check(input_ids, attention_mask)
        if not config.causal or config.pooling == "last":  # padding matters
            padding = config.pad_token_id or 0
            if attention_mask is not None:
                input_ids = input_ids.masked_fill(attention_mask == 0, padding)
            missing = config.max_position_embeddings - input_ids.shape[1]
            input_ids = nn.functional.pad(input_ids, (0, missing), value=padding)
        self._check_words(input_ids)
        hidden_states = self.token_embedding(input_ids) + self.position_embedding[: input_ids.shape[1]]
        if config.causal:
            mask = create_causal_mask(config, hidden_states, None, None)
        else:
            mask = create_bidirectional_mask(config, hidden_states, None)
        for block in self.blocks:
            hidden_states = block(hidden_states, mask, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.pool(hidden_states, input_ids)
        )

    def pool(self, hidden_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """`[batch, length, hidden_size]` -> `[batch, hidden_size]`: the token that stands for the text."""
        pooling = self.config.pooling
        if pooling == "first":
            return hidden_states[:, 0]
        if pooling == "last":
            return hidden_states[:, -1]
        ids = input_ids if pooling == "argmax" else input_ids == self.config.eos_token_id
        place = ids.int().argmax(dim=-1)  # the first of equals
        return hidden_states[torch.arange(place.shape[0], device=place.device), place]

    def _check(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        limit = self.config.max_position_embeddings
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape [batch, length], got {list(input_ids.shape)}")
        if input_ids.shape[1] > limit:
            raise ValueError(
                f"the text has {input_ids.shape[1]} tokens, this model reads {limit} (max_position_embeddings): "
                "truncate input_ids and keep the end token; the processor does"
            )
        if attention_mask is None or torch.compiler.is_compiling():
            return
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask {list(attention_mask.shape)} must cover the {input_ids.shape[1]} tokens of input_ids"
            )
        # elsewhere than on CPU the answer would have to be waited for
        if attention_mask.device.type == "cpu" and not attention_mask[:, 0].all():
            raise ValueError("attention_mask has padding on the left: this tower's texts start at position 0")

    def _check_words(self, input_ids: torch.Tensor) -> None:
        # elsewhere than on CPU the answer would have to be waited for
        if torch.compiler.is_compiling() or input_ids.device.type != "cpu" or not input_ids.numel():
            return
        words = self.token_embedding.num_embeddings
        low, high = (bound.item() for bound in input_ids.aminmax())
        if low < 0 or high >= words:
            raise ValueError(
                f"input_ids has id {low if low < 0 else high}, but vocab_size is {words}: "
                "the processor is another model's"
            )
