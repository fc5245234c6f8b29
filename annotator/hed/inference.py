"""HED on a CPU with less memory, and faster for it.

A block's feature maps at full size are by far the largest things in the network. Here they are computed a
band of rows at a time, and only the projection and the pooled features of a band are kept. A band is computed
with as many further rows on both sides as the block has convolutions, so the result is the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.hed.network import ControlNetHED_Apache2, ConvBlock

_VALUES_AT_ONCE = (
    2**22
)  # of a feature map: 16 MiB in float32, which an allocator still keeps for the next one


def side_maps(network: ControlNetHED_Apache2, x: Tensor) -> list[Tensor]:
    """What ``network(x)`` gives."""
    x = (x - network.norm).contiguous(memory_format=torch.channels_last)
    maps = []
    for block in network.blocks:
        x, logits = _in_bands(block, x, pool=block is not network.block5)
        maps.append(logits)
    return maps


def _in_bands(block: ConvBlock, x: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """The features of a block, pooled if wanted, and its logits."""
    _, _, height, width = x.shape
    halo = len(block.convs)
    rows = max(16 * halo, _VALUES_AT_ONCE // (width * block.projection.weight.shape[1])) // 2 * 2
    if x.device.type != "cpu":
        rows = height
    kept, logits = [], []
    for top in range(0, max(1, height - 1), rows):
        bottom = top + rows if top + rows < height - 1 else height  # no band of one row, which pooling drops
        first = max(0, top - halo)
        features, projected = block(x[:, :, first : bottom + halo])
        band = slice(top - first, bottom - first)
        kept.append(F.max_pool2d(features[:, :, band], 2) if pool else features[:, :, band])
        logits.append(projected[:, :, band])
    return torch.cat(kept, dim=2), torch.cat(logits, dim=2)
