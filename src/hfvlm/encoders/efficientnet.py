"""EfficientNet tower, with squeeze-excite (B0 to B7) or without (Lite).

EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, https://arxiv.org/abs/1905.11946;
EfficientNet-Lite: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
Padding is TensorFlow's "SAME": with stride 2 the odd pixel of padding is on the right and at the bottom. Models built
without knowing the image's size (Keras', ALIGN's) put it there always: `padding="fixed"`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.output_capturing import capture_outputs

from hfvlm.encoders.configuration import EfficientNetTowerConfig
from hfvlm.encoders.efficientnet_stages import Block
from hfvlm.modeling import VlmPreTrainedModel
from hfvlm.nn.activation import activation
from hfvlm.nn.batch_norm import BatchNorm2d
from hfvlm.nn.embedding import check_pixels


class SamePadConv(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` pixels, padded as TensorFlow pads."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in inputs.shape[-1:-3:-1]]
        inputs = nn.functional.pad(inputs, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
        return super().forward(inputs)


class RightPadConv(nn.Conv2d):
    """A convolution with a pixel of padding more on the right and at the bottom, whatever the size: it is as
    `SamePadConv` for even sizes, and has `floor(size / 2)` pixels for odd ones."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        after = self.kernel_size[0] // 2
        return super().forward(nn.functional.pad(inputs, (after - 1, after, after - 1, after)))


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, padding: str = "same"
) -> nn.Conv2d:
    """A bias-free convolution; padding that is the same on both sides is built in.

    Args:
        padding: with a stride, "same" as TensorFlow, "right" as if the size were even, or "symmetric".
    """
    if stride == 1 or padding == "symmetric":
        return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    conv = SamePadConv if padding == "same" else RightPadConv
    return conv(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)


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
    """Inverted bottleneck: expand, depthwise, squeeze-excite, project; residual where the shape allows.

    Args:
        block: its shape.
        drop: share of the samples whose branch is left out in training.
        padding: of a strided depthwise convolution, as `convolution` takes it.
    """

    def __init__(self, config: EfficientNetTowerConfig, block: Block, drop: float = 0.0, padding: str = "same"):
        super().__init__()
        inputs, outputs, act = block.inputs, block.outputs, _act(config)
        hidden, squeezed = inputs * block.expansion, max(1, int(inputs * config.squeeze_ratio))
        self.expand = _ConvNorm(config, inputs, hidden, act=act) if block.expansion != 1 else None
        self.depthwise = _ConvNorm(
            config, hidden, hidden, block.kernel, block.stride, groups=hidden, act=act, padding=padding
        )
        self.squeeze_excite = None if config.lite else SqueezeExcite(hidden, squeezed, act)
        self.project = _ConvNorm(config, hidden, outputs)
        self.residual = block.stride == 1 and inputs == outputs and (config.opening_residual or not block.opens)
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

    def __init__(
        self, config, inputs, outputs, kernel=1, stride=1, groups=1, act: nn.Module | None = None, padding="same"
    ):
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride, groups, padding)
        self.norm = BatchNorm2d(outputs, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.act = act

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(features))
        return features if self.act is None else self.act(features)


def _act(config: EfficientNetTowerConfig) -> nn.Module:
    return activation(config.hidden_act or ("relu6" if config.lite else "silu"))


class EfficientNetTower(VlmPreTrainedModel):
    """Pixels to tokens: `[batch, channels, h, w]` -> `[batch, ceil(h / 32) * ceil(w / 32), hidden_size]` (with
    `padding="fixed"`, and stages of its own, the last map may have fewer positions)."""

    config_class = EfficientNetTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["MbConv"]
    _can_record_outputs = {"hidden_states": MbConv}

    def __init__(self, config: EfficientNetTowerConfig):
        super().__init__(config)
        strided = "same" if config.padding == "same" else "right"
        channels, plan = config.plan
        self.stem = _ConvNorm(config, config.num_channels, channels, 3, 2, act=_act(config), padding=strided)
        rate = config.drop_connect_rate / len(plan)
        self.blocks = nn.ModuleList(
            MbConv(config, block, rate * i, "symmetric" if i in config.symmetric_blocks else strided)
            for i, block in enumerate(plan)
        )
        channels = config.map_channels
        self.head = None
        if config.head_channels is not None:
            self.head = _ConvNorm(config, plan[-1].outputs, channels, act=_act(config))
        self.proj = nn.Linear(channels, config.hidden_size) if channels != config.hidden_size else None
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
            `last_hidden_state` `[batch, positions, hidden_size]`, row by row; `pooler_output`: their mean or maximum.
        """
        config = self.config
        check_pixels(pixel_values, config.num_channels, None if interpolate_pos_encoding else config.image_size)
        features = self.stem(pixel_values.to(self.dtype))
        for block in self.blocks:
            features = block(features)
        features = features if self.head is None else self.head(features)
        tokens = features.flatten(2).transpose(1, 2)
        if self.proj is not None:
            tokens = self.proj(tokens)
        pooled = tokens.mean(dim=1) if config.pooling == "mean" else tokens.amax(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)
