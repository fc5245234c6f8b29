"""M-LSD's large network (the original's ``annotator/mlsd/models/mbv2_mlsd_large.py``).

Gu et al., "Towards Light-weight and Real-time Line Segment Detection", 2022: a MobileNetV2 encoder, and a
decoder that takes its features from 1/16 back to 1/2 of the picture's size. Keys are those of the released
``mlsd_large_512_fp32.pth``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16
"""Sides of the network's input must be multiples of this, in pixels."""

MAP_CHANNELS = 9
"""Channels of the output: the last of the sixteen that the network was trained with."""


class ConvBNReLU(nn.Sequential):
    """Convolution, BatchNorm and ReLU6; with a stride of 2 padded below and on the right alone."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ):
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride == 2 else x)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, convolve each channel by itself, narrow; added to an input of its shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        width = in_channels * expansion
        widen = [ConvBNReLU(in_channels, width, kernel=1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            ConvBNReLU(width, width, stride=stride, groups=width),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return _add(self.conv(x), x) if self.is_residual else self.conv(x)


class MobileNetV2(nn.Module):
    """The encoder: ``[B, 4, H, W]`` -> 16, 24, 32, 64, 96 channels at 1/2, 1/4, 1/8, 1/16, 1/16 of it."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    """Expansion, channels, blocks and the first block's stride; the last block of each gives features."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [ConvBNReLU(4, 32, stride=2)]
        self.taken: list[int] = []
        in_channels = 32
        for expansion, channels, blocks, stride in self.STAGES:
            for index in range(blocks):
                layers.append(InvertedResidual(in_channels, channels, stride if index == 0 else 1, expansion))
                in_channels = channels
            self.taken.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taken:
                features.append(x)
        return features


def convolution(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU of the decoder, the size kept."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2 * dilation, dilation=dilation),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class BlockTypeA(nn.Module):
    """Joins the encoder's features and the decoder's, 64 channels each; the decoder's are enlarged by 2."""

    def __init__(self, encoder_channels: int, decoder_channels: int, enlarge: bool = True):
        super().__init__()
        self.conv1 = convolution(decoder_channels, 64, 1)
        self.conv2 = convolution(encoder_channels, 64, 1)
        self.enlarge = enlarge

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        decoded = self.conv1(decoded)
        if self.enlarge:
            decoded = F.interpolate(decoded, scale_factor=2, mode="bilinear", align_corners=True)
        return torch.cat([self.conv2(encoded), decoded], dim=1)


class BlockTypeB(nn.Module):
    """A residual convolution, and one from 128 channels to 64."""

    def __init__(self):
        super().__init__()
        self.conv1 = convolution(128, 128, 3)
        self.conv2 = convolution(128, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(_add(self.conv1(x), x))


class BlockTypeC(nn.Module):
    """The head: a wide look around, and the sixteen maps."""

    def __init__(self):
        super().__init__()
        self.conv1 = convolution(64, 64, 3, dilation=5)
        self.conv2 = convolution(64, 64, 3)
        self.conv3 = nn.Conv2d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class MobileV2_MLSD_Large(nn.Module):
    """Maps of line segments.

    Takes ``[B, 4, H, W]``: RGB in [0, 255] and a channel of ones, all / 127.5 - 1; H and W multiples of 16.
    Gives ``[B, 9, H / 2, W / 2]``: channel 0 the logit of "here is the centre of a segment", channels 1 to 4
    the way from there to its start (x, y) and to its end (x, y), in pixels of the map. The others are for
    training alone: logits of length and angle, of the segment and of its parts.
    """

    def __init__(self):
        super().__init__()
        self.backbone = MobileNetV2()
        self.block15 = BlockTypeA(64, 96, enlarge=False)
        self.block16 = BlockTypeB()
        self.block17 = BlockTypeA(32, 64)
        self.block18 = BlockTypeB()
        self.block19 = BlockTypeA(24, 64)
        self.block20 = BlockTypeB()
        self.block21 = BlockTypeA(16, 64)
        self.block22 = BlockTypeB()
        self.block23 = BlockTypeC()

    def forward(self, x: Tensor) -> Tensor:
        half, quarter, eighth, sixteenth, deepest = self.backbone(x)
        x = self.block16(self.block15(sixteenth, deepest))
        x = self.block18(self.block17(eighth, x))
        x = self.block20(self.block19(quarter, x))
        x = self.block22(self.block21(half, x))
        return self.block23(x)[:, -MAP_CHANNELS:]


def _add(fresh: Tensor, x: Tensor) -> Tensor:
    """The sum; in inference mode in the memory of the first, which nobody else has: the maps are large."""
    return fresh.add_(x) if torch.is_inference_mode_enabled() else fresh + x
