"""A narrow HED that begins where a wide one stands, so that training has less to do.

Layer by layer: of the wide network's channels those are chosen that tell most about all of them, and the
narrow network's kernels are fitted, by least squares, so that it computes these channels from what it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.hed.network import ControlNetHED_Apache2

_SAMPLES = 24_000  # pixels that a layer is fitted on
_RIDGE = 1e-4  # of the mean square of the inputs


@torch.no_grad()
def shrink(
    wide: ControlNetHED_Apache2, widths: Sequence[int], pictures: Sequence[Tensor]
) -> ControlNetHED_Apache2:
    """Fit a network of some widths to a wider one.

    Args:
        wide: on the CPU, float32.
        widths: channels of the blocks, none more than the wide one's.
        pictures: what to fit on, float32 RGB ``[1, 3, H, W]`` in [0, 255]; some 20 of 256 pixels or more.

    Returns:
        the narrow network. Its features have a standard deviation near 1.

    Raises:
        ValueError: a block that would be wider than before.
    """
    before = [len(block.convs[0].weight) for block in wide.blocks]
    if any(width > limit for width, limit in zip(widths, before, strict=True)):
        raise ValueError(f"a network of widths {before} cannot be shrunk to {list(widths)}")
    narrow = ControlNetHED_Apache2(widths)
    narrow.norm.copy_(wide.norm)
    full = few = [picture - wide.norm for picture in pictures]
    for wide_block, block in zip(wide.blocks, narrow.blocks, strict=True):
        if block is not narrow.block1:
            full, few = ([F.max_pool2d(x, 2) for x in features] for features in (full, few))
        for wide_conv, conv in zip(wide_block.convs, block.convs, strict=True):
            wanted = [wide_conv(x) for x in full]
            full = [x.relu() for x in wanted]
            chosen, scales = _choose(full, conv.out_channels)
            _fit(conv, few, [x[:, chosen] / scales[:, None, None] for x in wanted])
            few = [conv(x).relu() for x in few]
        _fit(block.projection, few, [wide_block.projection(x) for x in full])
    return narrow


def _choose(features: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Channels from which the others can be told best, and their standard deviations: both ``[count]``.

    Pivoted Cholesky: take the channel of the largest variance, take from all others what it tells of them, go
    on with what is left.
    """
    values = torch.cat([x.flatten(2)[0] for x in features], dim=1).double()
    covariance = torch.cov(values[:, :: max(1, values.shape[1] // _SAMPLES)])
    scales, rest, chosen = covariance.diagonal().sqrt(), covariance.clone(), []
    for _ in range(count):
        best = int(rest.diagonal().argmax())
        chosen.append(best)
        column = rest[:, best] / rest[best, best].clamp(min=1e-12).sqrt()
        rest = rest - torch.outer(column, column)
        rest[best, best] = -1
    return torch.tensor(chosen), scales[chosen].clamp(min=1e-3 * scales.max()).float()


def _fit(layer: nn.Conv2d, inputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Set a layer's kernels and biases so that it best computes ``wanted`` from ``inputs``."""
    patches, targets = [], []
    generator = torch.Generator().manual_seed(0)
    for x, y in zip(inputs, wanted, strict=True):
        pixels = torch.randint(y[0, 0].numel(), (_SAMPLES // len(inputs),), generator=generator)
        padding = layer.kernel_size[0] // 2
        patches.append(F.unfold(x, layer.kernel_size, padding=padding)[0, :, pixels])
        targets.append(y.flatten(2)[0, :, pixels])
    a, b = torch.cat(patches, dim=1).double(), torch.cat(targets, dim=1).double()
    a = torch.cat([a, torch.ones_like(a[:1])])
    gram = a @ a.T
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram, a @ b.T).T.float()  # [O, C * h * w + 1]
    layer.weight.copy_(solved[:, :-1].reshape(layer.weight.shape))
    layer.bias.copy_(solved[:, -1])
