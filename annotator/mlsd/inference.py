"""M-LSD's network made ready to be used: the same maps from fewer operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from annotator.mlsd.network import MAP_CHANNELS, BlockTypeA, BlockTypeB, MobileV2_MLSD_Large
from annotator.uniformer.upernet_inference import enlarging_taps

ROWS = 8
"""Enlarged rows that are computed together; they need ``ROWS / 2 + 2`` rows of the coarse map."""


@torch.no_grad()
def simplify(model: MobileV2_MLSD_Large) -> None:
    """Change a network in eval mode, in place, into one that gives the same maps faster.

    BatchNorm becomes part of the convolution before it, the largest maps are convolved before they are
    enlarged, and the seven maps that only training needs are left out. To be done in float32. Keys change,
    and the network cannot be trained any more.
    """
    for block in list(model.modules()):
        if isinstance(block, nn.Sequential):
            _fold_batch_norms(block)
    model.block21, model.block22 = JoinAndRefine(model.block21, model.block22), nn.Identity()
    last = model.block23.conv3
    last.weight = nn.Parameter(last.weight[-MAP_CHANNELS:])
    last.bias = nn.Parameter(last.bias[-MAP_CHANNELS:])
    last.out_channels = MAP_CHANNELS


def _fold_batch_norms(block: nn.Sequential) -> None:
    for index in range(len(block) - 1):
        convolve, norm = block[index], block[index + 1]
        if isinstance(norm, nn.BatchNorm2d):
            block[index], block[index + 1] = fuse_conv_bn_eval(convolve, norm), nn.Identity()


class JoinAndRefine(nn.Module):
    """What a ``BlockTypeA`` and the ``BlockTypeB`` after it give, with a quarter fewer multiplications.

    The decoder's map is enlarged and then convolved. Both are linear, so the order may change: enlarge its
    width alone, convolve with each of the kernel's three lines (1x3), and enlarge the height of the results,
    each shifted by its line. That halves the multiplications of the decoder's half of a 3x3 convolution.

    Args:
        join, refine: with BatchNorm folded. Their weights are copied where they are split.
    """

    def __init__(self, join: BlockTypeA, refine: BlockTypeB):
        super().__init__()
        self.conv_decoded, self.conv_encoded, self.conv_out = join.conv1, join.conv2, refine.conv2
        weight, bias = refine.conv1[0].weight, refine.conv1[0].bias
        encoded, decoded = weight.chunk(2, dim=1)
        self.whole = _convolution(encoded, bias, padding=1)
        # The padding gives each result a row of zeros above and one below.
        self.lines = nn.ModuleList(_convolution(line, None, padding=1) for line in decoded.split(1, dim=2))

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """``[B, C, H, W]`` and ``[B, 64, H / 2, W / 2]``, H a multiple of 8 -> ``[B, 64, H, W]``."""
        encoded, decoded = self.conv_encoded(encoded), self.conv_decoded(decoded)
        height, width = encoded.shape[2:]
        wide = F.interpolate(decoded, (decoded.shape[2], width), mode="bilinear", align_corners=True)
        x = self.whole(encoded).permute(0, 2, 3, 1).contiguous()  # [B, H, W, 128]
        self._add_enlarged(wide, x.flatten(2))
        x = x.permute(0, 3, 1, 2).relu_()
        x[:, :64] += encoded
        x[:, 64:] += F.interpolate(wide, (height, width), mode="bilinear", align_corners=True)
        return self.conv_out(x)

    def _add_enlarged(self, wide: Tensor, total: Tensor) -> None:
        """Add what the three lines of the kernel see in ``wide`` to ``total``, ``[B, H, W * 128]``, in
        place.
        """
        blocks = total.unflatten(1, (-1, ROWS))
        taps = F.pad(enlarging_taps(wide.shape[2], total.shape[1], True, wide.dtype, wide.device), (1, 1))
        taps = taps.unflatten(1, (-1, ROWS)).unfold(
            3, ROWS // 2 + 2, ROWS // 2
        )  # [3, blocks, ROWS, blocks, rows]
        taps = taps.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # [3, blocks, ROWS, rows]; the rest is zero
        for convolve, tap in zip(self.lines, taps, strict=True):
            line = convolve(wide).permute(0, 2, 3, 1).flatten(2)  # [B, H / 2 + 2, W * 128]
            line = line.unfold(1, ROWS // 2 + 2, ROWS // 2).transpose(2, 3)  # [B, blocks, rows, W * 128]
            for block, rows in zip(blocks, line, strict=True):
                torch.baddbmm(block, tap, rows, out=block)


def _convolution(weight: Tensor, bias: Tensor | None, padding: int) -> nn.Conv2d:
    out_channels, in_channels, *kernel = weight.shape
    with torch.device("meta"):
        layer = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    return layer
