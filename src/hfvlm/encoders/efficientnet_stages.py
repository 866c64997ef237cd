"""The blocks of an EfficientNet: seven stages, scaled in width and depth, https://arxiv.org/abs/1905.11946."""

import math
from collections.abc import Iterable
from typing import NamedTuple


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


class Block(NamedTuple):
    """One inverted bottleneck: channels in and out, and whether it opens a stage."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int
    opens: bool


def scale_channels(channels: int, width: float, divisor: int = 8) -> int:
    """Channels times the width coefficient, to the nearest multiple of `divisor`, never more than 10 % less."""
    scaled = max(divisor, int(channels * width + divisor / 2) // divisor * divisor)
    return scaled + divisor if scaled < 0.9 * channels * width else scaled


def plan_blocks(
    stages: Iterable[Iterable[int]], width: float, depth: float, divisor: int, lite: bool
) -> tuple[int, list[Block]]:
    """The stem's channels, and the blocks after it.

    Args:
        stages: rows of (repeats, kernel, stride, expansion, channels), as in `STAGES`.
        width, depth: coefficients of channels and repeats.
        divisor: channels are multiples of it.
        lite: the stem, and the repeats of the first and of the last stage, are not scaled.
    """
    stages = [tuple(stage) for stage in stages]
    stem = channels = STEM_CHANNELS if lite else scale_channels(STEM_CHANNELS, width, divisor)
    blocks = []
    for i, (repeats, kernel, stride, expansion, outputs) in enumerate(stages):
        if not (lite and i in (0, len(stages) - 1)):
            repeats = math.ceil(repeats * depth)
        outputs = scale_channels(outputs, width, divisor)
        for repeat in range(repeats):
            blocks.append(Block(channels, outputs, kernel, stride if repeat == 0 else 1, expansion, repeat == 0))
            channels = outputs
    return stem, blocks
