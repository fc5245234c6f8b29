"""Enlarging to twice the size and a 3x3 convolution after it, in one, with fewer multiplications.

Both are linear, so the order may change (see ``annotator.uniformer.upernet_inference``): one 1x1 convolution
for each tap of the kernel on the small map, then enlarging, each tap shifted by its place. A pixel of a large
line depends on two of the small one, so the matrices that enlarge are cut into pieces along their diagonal:
what lies beside them is 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from annotator.uniformer.upernet_inference import enlarging_taps

_PIECE = 32


class ConvolveDoubled(nn.Module):
    """``convolution(enlarge(x))``: ``[B, C, H, W] -> [B, O, 2H, 2W]``, bilinear with corners aligned.

    Args:
        convolution: a 3x3 convolution with a bias, padding 1 and stride 1.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        kernel = convolution.weight.detach()
        rows = [nn.Conv2d(kernel.shape[1], 3 * len(kernel), 1, bias=False, device="meta") for _ in range(3)]
        for row, taps in zip(rows, kernel.permute(2, 3, 0, 1), strict=True):  # [3, O, C] each
            row.weight = nn.Parameter(taps.flatten(0, 1)[:, :, None, None].contiguous())
        self.rows = nn.ModuleList(rows)
        self.bias = nn.Parameter(convolution.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        down = _doubling_pieces(height, x.dtype, x.device)
        across = _doubling_pieces(width, x.dtype, x.device)
        out = self.bias.repeat(batch, 2 * height, 2 * width)  # [B, 2H, 2W * O]
        for tap, convolve in enumerate(self.rows):
            line = convolve(x).permute(0, 2, 3, 1)  # [B, H, W, 3 * O]
            line = line.unflatten(3, (3, -1)).flatten(2, 3)  # [B, H, W * 3, O]
            pieces = [piece.joined @ line[:, :, 3 * piece.old.start : 3 * piece.old.stop] for piece in across]
            line = torch.cat(pieces, dim=2).flatten(2)  # [B, H, 2W * O]
            for piece in down:
                part = out[:, piece.new]
                torch.baddbmm(part, piece.taps[tap].expand(batch, -1, -1), line[:, piece.old], out=part)
        return out.unflatten(2, (2 * width, -1)).permute(0, 3, 1, 2)


class _Piece(NamedTuple):
    """A part of the matrices that double a line and shift it by each tap of a kernel."""

    new: slice
    """The pixels of the doubled line that it gives."""
    old: slice
    """The pixels of the line that they are made of."""
    taps: Tensor
    """``[3, new, old]``."""
    joined: Tensor
    """``[new, old * 3]``: the same for a line that holds what each tap gives, pixel by pixel."""


@lru_cache(maxsize=64)
def _doubling_pieces(size: int, dtype: torch.dtype, device: torch.device) -> list[_Piece]:
    taps = enlarging_taps(size, 2 * size, True, dtype, device)  # [3, 2 * size, size]
    pieces = []
    for start in range(0, 2 * size, _PIECE):
        new = slice(start, min(start + _PIECE, 2 * size))
        used = taps[:, new].any(dim=0).any(dim=0).nonzero()
        old = slice(int(used[0]), int(used[-1]) + 1)
        part = taps[:, new, old]
        pieces.append(_Piece(new, old, part.contiguous(), part.permute(1, 2, 0).flatten(1).contiguous()))
    return pieces
