"""Vision transformer tower.

An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929. The form is the one that ALBEF and BLIP take from
timm: class token, learned positions, pre-norm blocks with one `qkv` projection, a final norm on every token.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import SelfAttention
from hfvlm.nn.embedding import PatchEmbedding, check_pixels, resize_positions
from hfvlm.nn.mlp import Mlp


class VitBlock(GradientCheckpointingLayer):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; `[batch, tokens, dim]` in and out."""

    def __init__(self, config: VitTowerConfig):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SelfAttention(config, dim, config.num_attention_heads, dropout=config.attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, config.intermediate_size, config.hidden_act)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.norm2(hidden_states))


class VitTower(VlmPreTrainedModel):
    """Pixels to tokens: `[batch, channels, h, w]` -> `[batch, 1 + patches, hidden_size]`, class token first."""

    config_class = VitTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["VitBlock"]
    _can_record_outputs = {"hidden_states": VitBlock, "attentions": OutputRecorder(SelfAttention, index=1)}

    def __init__(self, config: VitTowerConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.patch_embed = PatchEmbedding(config.patch_size, config.num_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, dim))
        self.blocks = nn.ModuleList(VitBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VitTower):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.position_embedding, std=self.config.initializer_range)

    @capture_outputs
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, num_channels, h, w]`, float; `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take any `h` and `w` that the patch size divides.

        Returns:
            `last_hidden_state` `[batch, 1 + patches, hidden_size]`; `pooler_output`: its class token.
        """
        config = self.config
        image_size, patch_size = None if interpolate_pos_encoding else config.image_size, config.patch_size
        check_pixels(pixel_values, config.num_channels, image_size, patch_size)
        grid = (pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size)
        hidden_states = self.patch_embed(pixel_values.to(self.dtype))
        hidden_states = torch.cat([self.cls_token.expand(hidden_states.shape[0], -1, -1), hidden_states], dim=1)
        positions = self.position_embedding
        if interpolate_pos_encoding:
            positions = resize_positions(positions, grid)
        hidden_states = hidden_states + positions
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])
