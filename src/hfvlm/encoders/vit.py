"""Vision transformer tower.

An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929. The defaults are the form that ALBEF and BLIP take
from timm; the configuration's other choices are CLIP's, MoCo v3's and the paper's own variants.
"""

import torch
from torch import nn
from transformers import AutoBackbone
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import VitTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import SelfAttention
from hfvlm.nn.block import PreNormBlock
from hfvlm.nn.embedding import PatchEmbedding, check_pixels, resize_positions, sincos_positions


class HybridEmbedding(nn.Module):
    """A backbone's last feature map, cut into patches: `[batch, channels, h, w]` -> `[batch, patches, dim]`."""

    def __init__(self, config: VitTowerConfig):
        super().__init__()
        self.backbone = AutoBackbone.from_config(config.stem_config)
        patch = config.patch_size // config.stem_stride
        self.proj = nn.Conv2d(self.backbone.channels[-1], config.hidden_size, patch, stride=patch)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # [batch, stem channels, h / stride, w / stride]
        features = self.backbone(pixel_values).feature_maps[-1]
        return self.proj(features).flatten(2).transpose(1, 2)


class VitTower(VlmPreTrainedModel):
    """Pixels to tokens: `[batch, channels, h, w]` -> `[batch, prefix + patches, hidden_size]`, class token first."""

    config_class = VitTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["PreNormBlock"]
    _can_record_outputs = {"hidden_states": PreNormBlock, "attentions": OutputRecorder(SelfAttention, index=1)}

    def __init__(self, config: VitTowerConfig):
        super().__init__(config)
        dim, grid = config.hidden_size, config.grid_size
        if config.stem_config is None:
            self.patch_embed = PatchEmbedding(config.patch_size, config.num_channels, dim, bias=config.patch_bias)
        else:
            self.patch_embed = HybridEmbedding(config)
        prefix = int(config.class_token)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position_embedding == "sincos":
            self.register_buffer("position_embedding", sincos_positions(grid, dim, prefix))
        elif config.position_embedding == "factorised":
            self.position_embedding = nn.Parameter(torch.zeros(1, prefix, dim))  # the class token's
            self.row_embedding = nn.Parameter(torch.zeros(1, grid, dim // 2))
            self.column_embedding = nn.Parameter(torch.zeros(1, grid, dim // 2))
        else:
            self.position_embedding = nn.Parameter(torch.zeros(1, prefix + grid**2, dim))
        self.pre_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if config.pre_norm else None
        self.blocks = nn.ModuleList(PreNormBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if config.final_norm != "none" else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VitTower):
            config = module.config
            for name in ("cls_token", "position_embedding", "row_embedding", "column_embedding"):
                if isinstance(table := getattr(module, name, None), nn.Parameter):
                    init.trunc_normal_(table, std=config.initializer_range)
            if config.position_embedding == "sincos":
                fixed = sincos_positions(config.grid_size, config.hidden_size, int(config.class_token))
                init.copy_(module.position_embedding, fixed)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """The positions of a grid of rows and columns, `[1, prefix + rows * columns, hidden_size]`."""
        config, table = self.config, self.position_embedding
        prefix, square = int(config.class_token), (config.grid_size, config.grid_size)
        if config.position_embedding == "factorised":
            rows, columns = (
                axis
                if axis.shape[1] == size
                else nn.functional.interpolate(axis.transpose(1, 2), size=size, mode="linear").transpose(1, 2)
                for axis, size in ((self.row_embedding, grid[0]), (self.column_embedding, grid[1]))
            )
            both = (rows[:, :, None].expand(-1, -1, grid[1], -1), columns[:, None].expand(-1, grid[0], -1, -1))
            return torch.cat([table, torch.cat(both, dim=-1).flatten(1, 2)], dim=1)
        return table if grid == square else resize_positions(table, grid, prefix, config.interpolation)

    def embed(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Pixels to patches without positions: `[batch, patches, hidden_size]`, and their rows and columns.

        Args:
            pixel_values, interpolate_pos_encoding: as in `forward`.
        """
        config = self.config
        image_size = None if interpolate_pos_encoding else config.image_size
        check_pixels(pixel_values, config.num_channels, image_size, config.patch_size)
        grid = (pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size)
        return self.patch_embed(pixel_values.to(self.dtype)), grid

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        patch_embeds: torch.Tensor | None = None,
        patch_grid: tuple[int, int] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, num_channels, h, w]`, float; `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take any `h` and `w` that the patch size divides.
            patch_embeds: `[batch, patches, hidden_size]` as `embed` makes them, instead of `pixel_values` (masked
                image modelling changes some).
            patch_grid: their rows and columns; left out: those of an image of the tower's own size.

        Returns:
            `last_hidden_state` `[batch, prefix + patches, hidden_size]`, normed if `final_norm` is "tokens";
            `pooler_output` `[batch, hidden_size]`: class token or mean of the patches, normed unless it is "none".
        """
        config = self.config
        if patch_embeds is None:
            patch_embeds, grid = self.embed(pixel_values, interpolate_pos_encoding)
        else:
            grid = patch_grid or (config.grid_size, config.grid_size)
            if patch_embeds.shape[1] != grid[0] * grid[1]:
                raise ValueError(
                    f"patch_embeds has {patch_embeds.shape[1]} patches, {grid[0]} rows of {grid[1]} are expected; "
                    "name theirs as patch_grid"
                )
        hidden_states = patch_embeds
        if config.class_token:
            hidden_states = torch.cat([self.cls_token.expand(patch_embeds.shape[0], -1, -1), patch_embeds], dim=1)
        hidden_states = self.dropout(hidden_states + self.positions(grid))
        if self.pre_norm is not None:
            hidden_states = self.pre_norm(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, **kwargs)
        if config.final_norm == "tokens":
            hidden_states = self.norm(hidden_states)
        pooled = hidden_states[:, 0] if config.pooling == "cls" else self.patches(hidden_states).mean(dim=1)
        if config.final_norm == "pooled":
            pooled = self.norm(pooled)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens that stand for patches, `[batch, patches, hidden_size]`."""
        return tokens[:, int(self.config.class_token) :]
