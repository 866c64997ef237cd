"""EfficientNet tower, with squeeze-excite (B0 to B7) or without (Lite).

EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, https://arxiv.org/abs/1905.11946;
EfficientNet-Lite: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
Padding is TensorFlow's "SAME": with stride 2 the odd pixel of padding is on the right and at the bottom.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import capture_outputs

from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.batch_norm import BatchNorm2d
from hfvlm.nn.embedding import check_pixels


# (repeats, kernel, stride, expansion, channels) of the seven stages of B0
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32


def scale_channels(channels: int, width: float) -> int:
    """Channels times the width coefficient, to the nearest multiple of 8, never more than 10 % less."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled + 8 if scaled < 0.9 * channels * width else scaled


class SamePadConv(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` pixels, padded as TensorFlow pads."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in inputs.shape[-1:-3:-1]]
        inputs = nn.functional.pad(inputs, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
        return super().forward(inputs)


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A bias-free convolution with "SAME" padding; the padding is built in where it is the same on both sides."""
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return SamePadConv(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the channel means; `[batch, channels, h, w]` in and out."""

    def __init__(self, channels: int, squeezed: int, act: nn.Module):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = act
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        means = features.mean(dim=(2, 3), keepdim=True)
        return features * self.expand(self.act(self.reduce(means))).sigmoid()


class MbConv(GradientCheckpointingLayer):
    """Inverted bottleneck: expand, depthwise, squeeze-excite, project; residual where the shape allows."""

    def __init__(self, config, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float):
        super().__init__()
        hidden, act = inputs * expansion, _act(config)
        self.expand = _ConvNorm(config, inputs, hidden, act=act) if expansion != 1 else None
        self.depthwise = _ConvNorm(config, hidden, hidden, kernel, stride, groups=hidden, act=act)
        self.squeeze_excite = None if config.lite else SqueezeExcite(hidden, max(1, inputs // 4), act)
        self.project = _ConvNorm(config, hidden, outputs)
        self.residual = stride == 1 and inputs == outputs
        self.drop = drop

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = features if self.expand is None else self.expand(features)
        hidden = self.depthwise(hidden)
        if self.squeeze_excite is not None:
            hidden = self.squeeze_excite(hidden)
        hidden = self.project(hidden)
        if not self.residual:
            return hidden
        if self.training and self.drop:  # stochastic depth: the whole branch of a sample, or nothing
            keep = torch.rand(len(hidden), 1, 1, 1, device=hidden.device) >= self.drop
            hidden = hidden * keep.to(hidden.dtype) / (1 - self.drop)
        return features + hidden


class _ConvNorm(nn.Module):
    """Convolution, batch norm, and an activation if given."""

    def __init__(self, config, inputs, outputs, kernel=1, stride=1, groups=1, act: nn.Module | None = None):
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride, groups)
        self.norm = BatchNorm2d(outputs, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.act = act

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(features))
        return features if self.act is None else self.act(features)


def _act(config: EfficientNetTowerConfig) -> nn.Module:
    return nn.ReLU6() if config.lite else nn.SiLU()


class EfficientNetTower(VlmPreTrainedModel):
    """Pixels to tokens: `[batch, channels, h, w]` -> `[batch, ceil(h / 32) * ceil(w / 32), hidden_size]`."""

    config_class = EfficientNetTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["MbConv"]
    _can_record_outputs = {"hidden_states": MbConv}

    def __init__(self, config: EfficientNetTowerConfig):
        super().__init__(config)
        width, depth, lite = config.width_coefficient, config.depth_coefficient, config.lite
        channels = STEM_CHANNELS if lite else scale_channels(STEM_CHANNELS, width)
        self.stem = _ConvNorm(config, config.num_channels, channels, 3, 2, act=_act(config))
        plan = []
        for i, (repeats, kernel, stride, expansion, outputs) in enumerate(STAGES):
            if not (lite and i in (0, len(STAGES) - 1)):
                repeats = math.ceil(repeats * depth)
            outputs = scale_channels(outputs, width)
            for repeat in range(repeats):
                plan.append((channels, outputs, kernel, stride if repeat == 0 else 1, expansion))
                channels = outputs
        rate = config.drop_connect_rate / len(plan)
        self.blocks = nn.ModuleList(MbConv(config, *block, rate * i) for i, block in enumerate(plan))
        head = config.head_channels if lite else scale_channels(config.head_channels, width)
        self.head = _ConvNorm(config, channels, head, act=_act(config))
        self.proj = nn.Linear(head, config.hidden_size) if head != config.hidden_size else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            outputs, _, height, width = module.weight.shape
            init.normal_(module.weight, std=math.sqrt(2 * module.groups / (height * width * outputs)))

    def train(self, mode: bool = True) -> "EfficientNetTower":
        super().train(mode)
        if self.config.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: `[batch, num_channels, h, w]`, float; `h = w = image_size` unless the next is set.
            interpolate_pos_encoding: take any `h` and `w` (a convolution has no position table to resize).

        Returns:
            `last_hidden_state` `[batch, positions, hidden_size]`, row by row; `pooler_output`: their mean.
        """
        config = self.config
        check_pixels(pixel_values, config.num_channels, None if interpolate_pos_encoding else config.image_size)
        features = self.stem(pixel_values.to(self.dtype))
        for block in self.blocks:
            features = block(features)
        tokens = self.head(features).flatten(2).transpose(1, 2)
        if self.proj is not None:
            tokens = self.proj(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))
