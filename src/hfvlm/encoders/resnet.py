"""ResNet tower: ResNet v1.5, or CLIP's modified ResNet with attention pooling.

Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385, with the stride of a stage on its first
3x3 convolution (v1.5); Learning Transferable Visual Models From Natural Language Supervision,
https://arxiv.org/abs/2103.00020, original code https://github.com/openai/CLIP (MIT): three convolutions as the stem,
and average pooling wherever a convolution had a stride (Making Convolutional Networks Shift-Invariant Again,
https://arxiv.org/abs/1904.11486).
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hfvlm.encoders.configuration import ResNetTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.attention import CrossAttention
from hfvlm.nn.batch_norm import BatchNorm2d
from hfvlm.nn.embedding import check_pixels, resize_positions
from hfvlm.nn.hooks import may_overwrite
from hfvlm.nn.linear import Linear


class ConvNorm(nn.Module):
    """A bias-free convolution of an odd kernel, batch norm, and ReLU if asked for."""

    def __init__(
        self, config: ResNetTowerConfig, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, relu: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm2d(outputs, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.relu = relu

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(features))
        if not self.relu:
            return features
        return features.relu_() if may_overwrite(self.norm) else features.relu()


class ResidualBlock(GradientCheckpointingLayer):
    """Two or three convolutions beside a shortcut: `[batch, inputs, h, w]` -> `[batch, outputs, h', w']`.

    Args:
        width: channels of the 3x3 convolutions; a bottleneck has four times as many outputs.
        stride: what `h` and `w` are divided by: the first 3x3 convolution's, or that of an average pooling behind it.
    """

    def __init__(self, config: ResNetTowerConfig, inputs: int, width: int, stride: int):
        super().__init__()
        pooled = config.modified and stride > 1
        step = 1 if pooled else stride
        if config.bottleneck:
            outputs = 4 * width
            self.conv1 = ConvNorm(config, inputs, width)
            self.conv2 = ConvNorm(config, width, width, 3, step)
            self.conv3 = ConvNorm(config, width, outputs, relu=False)
        else:
            outputs = width
            self.conv1 = ConvNorm(config, inputs, width, 3, step)
            self.conv2 = ConvNorm(config, width, width, 3, relu=False)
            self.conv3 = None
        self.pool = nn.AvgPool2d(stride) if pooled else None
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = ConvNorm(config, inputs, outputs, 1, step, relu=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        shortcut = features if self.pool is None else self.pool(features)
        if self.shortcut is not None:
            shortcut = self.shortcut(shortcut)
        hidden = self.conv2(self.conv1(features))
        if self.conv3 is not None:
            hidden = self.conv3(hidden if self.pool is None else self.pool(hidden))
        return (hidden + shortcut).relu_()


class AttentionPool(CrossAttention):
    """The mean token asks all tokens, itself included: `[batch, tokens, dim]` -> `[batch, output_dim]`."""

    def __init__(self, config: ResNetTowerConfig):
        dim = config.hidden_size
        super().__init__(config, dim, config.num_attention_heads, memory_dim=dim)
        self.proj = Linear(dim, config.output_dim)
        self.position_embedding = nn.Parameter(torch.zeros(1 + (config.image_size // 32) ** 2, dim))

    def forward(
        self, tokens: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            tokens: `[batch, rows * columns, dim]`, row by row.
            grid: rows and columns; positions are resized if they are not the tower's own.

        Returns:
            `[batch, output_dim]`, and the weights `[batch, heads, 1, 1 + tokens]` if the implementation has them.
        """
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + resize_positions(self.position_embedding[None], grid)
        pooled, weights = super().forward(tokens[:, :1], tokens, **kwargs)
        return pooled[:, 0], weights


class ResNetTower(VlmPreTrainedModel):
    """Pixels to tokens: `[batch, channels, h, w]` -> `[batch, (h / 32) * (w / 32), hidden_size]`."""

    config_class = ResNetTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResidualBlock"]
    _can_record_outputs = {"hidden_states": ResidualBlock, "attentions": OutputRecorder(AttentionPool, index=1)}

    def __init__(self, config: ResNetTowerConfig):
        super().__init__(config)
        width = config.width
        if config.modified:
            self.stem = nn.Sequential(
                ConvNorm(config, config.num_channels, width // 2, 3, 2),
                ConvNorm(config, width // 2, width // 2, 3),
                ConvNorm(config, width // 2, width, 3),
            )
            self.stem_pool = nn.AvgPool2d(2)
        else:
            self.stem = nn.Sequential(ConvNorm(config, config.num_channels, width, 7, 2))
            self.stem_pool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, inputs = [], width
        for stage, depth in enumerate(config.depths):
            blocks = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(ResidualBlock(config, inputs, width * 2**stage, stride))
                inputs = width * 2**stage * (4 if config.bottleneck else 1)
            stages.append(nn.ModuleList(blocks))
        self.stages = nn.ModuleList(stages)
        self.attention_pool = AttentionPool(config) if config.pooling == "attention" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, ResidualBlock) and self.config.modified:
            init.zeros_(module.conv3.norm.weight)  # each block starts as its shortcut
        elif isinstance(module, AttentionPool):
            std = self.config.hidden_size**-0.5
            for weight in (module.q.weight, module.kv.weight, module.proj.weight, module.position_embedding):
                init.normal_(weight, std=std)

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, num_channels, h, w]`, float; `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take any `h` and `w` from 32 pixels on; attention pooling resizes its positions.

        Returns:
            `last_hidden_state` `[batch, positions, hidden_size]`, row by row; `pooler_output`: their mean
            `[batch, hidden_size]`, or what attention pooling makes of them, `[batch, output_dim]`; `hidden_states`:
            the feature map `[batch, channels, rows, columns]` before the first block and behind each block.
        """
        config = self.config
        check_pixels(pixel_values, config.num_channels, None if interpolate_pos_encoding else config.image_size)
        if config.modified and min(pixel_values.shape[2:]) < 32:  # the averages would be of nothing
            height, width = pixel_values.shape[2:]
            raise ValueError(f"pixel_values are {height}x{width}, this tower reads 32x32 or more: enlarge them")
        features = self.stem_pool(self.stem(pixel_values.to(self.dtype)))
        for stage in self.stages:
            for block in stage:
                features = block(features)
        grid = (features.shape[2], features.shape[3])
        tokens = features.flatten(2).transpose(1, 2)
        if self.attention_pool is None:
            pooled = features.mean(dim=(2, 3))
        else:
            pooled, _ = self.attention_pool(tokens, grid, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)
