"""The network of holistically-nested edge detection (https://arxiv.org/abs/1504.06375), with the module names
of the released weights (the original's ``annotator/hed/__init__.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks, those of VGG-16."""

DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of the five blocks."""


class ConvBlock(nn.Module):
    """Convolutions, each with a ReLU, and a projection to one map: ``[B, C, H, W]`` -> features
    ``[B, D, H, W]`` and logits ``[B, 1, H, W]``.
    """

    def __init__(self, in_channels: int, channels: int, depth: int):
        super().__init__()
        widths = [in_channels] + [channels] * depth
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return x, self.projection(x)


class ControlNetHED_Apache2(nn.Module):
    """Five blocks of a VGG, each with a map of edges at its own scale.

    Args:
        widths: channels of the five blocks.

    Returns (forward):
        Five maps of logits ``[B, 1, H / 2**i, W / 2**i]``, sides rounded down, i = 0 to 4, of RGB pictures
        ``[B, 3, H, W]`` in [0, 255], each side 16 or more.

    Raises:
        ValueError: another number of widths.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        if len(widths) != len(DEPTHS):
            raise ValueError(f"HED has {len(DEPTHS)} blocks, each with a width; got widths {list(widths)}.")
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.block1, self.block2, self.block3, self.block4, self.block5 = (
            ConvBlock(before, after, depth)
            for before, after, depth in zip([3, *widths], widths, DEPTHS, strict=False)
        )

    @property
    def blocks(self) -> tuple[ConvBlock, ...]:
        return self.block1, self.block2, self.block3, self.block4, self.block5

    def forward(self, x: Tensor) -> list[Tensor]:
        x = x - self.norm
        maps = []
        for block in self.blocks:
            if maps:
                x = F.max_pool2d(x, 2)
            x, logits = block(x)
            maps.append(logits)
        return maps
