"""Feature maps that are too large to be computed at once, in strips of rows.

A row of a 3x3 convolution depends on its neighbours, and one of a group normalization on mean and variance of
the whole map, which are therefore computed first. So there are no seams: the result is that of the whole map
but for rounding, while only strips are held beside a block's input and its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.residual import is_heard, plus

LARGE_MAP = 2**28
"""Bytes of a feature map from which on it is computed in strips: 256 MiB. Pictures of 512 x 512 pixels have
one in float32, and none in bf16."""

ROWS = 32
"""Rows that a strip has at least: those on either side of it are computed twice."""

PIXELS = 2**15
"""Pixels that it has at least: a layer may do something for each call (`ldm.winograd`)."""


def in_strips(module: nn.Module, x: torch.Tensor, factor: int = 1) -> bool:
    """Whether ``module`` works in strips: on one large map ``x [1, C, H, W]``, without gradients, and with
    nobody listening to its layers.

    Args:
        factor: by how much what the module makes of it is higher and wider.
    """
    if torch.is_grad_enabled() or module.training or len(x) > 1 or not _is_large(x, x.shape[1], factor):
        return False
    return not any(is_heard(part) for part in module.modules())


def one_by_one(network: nn.Module, x: torch.Tensor, channels: int, factor: int = 1) -> bool:
    """Whether a network works on one picture of ``x [B, C, H, W]`` after the other, so that it may in strips.

    Args:
        channels, factor: of the largest map: how many it has, and by how much it is higher and wider than x.
    """
    if torch.is_grad_enabled() or network.training or len(x) == 1:
        return False
    return _is_large(x, channels, factor)


def _is_large(x: torch.Tensor, channels: int, factor: int) -> bool:
    return channels * x.shape[2] * x.shape[3] * factor**2 * x.element_size() >= LARGE_MAP


def _strips(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """The strips of a map: the first row of each and that after its last, and the same with a row on either
    side where there is one.
    """
    rows = max(ROWS, PIXELS // width)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        yield first, last, max(first - 1, 0), min(last + 1, height)


def _assembled(strips: Iterator[torch.Tensor], height: int, into: torch.Tensor | None = None) -> torch.Tensor:
    """A map of ``height`` rows, from its strips; each is put ``into`` it before the next one is asked for."""
    first = 0
    for strip in strips:
        if into is None:
            channels_last = strip.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            shape = (1, strip.shape[1], height, strip.shape[3])
            into = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=layout)
        into[:, :, first : first + strip.shape[2]] = strip
        first += strip.shape[2]
    assert into is not None
    return into


def convolved(
    x: torch.Tensor,
    norm: nn.GroupNorm,
    conv: nn.Module,
    residual: Callable[[slice], torch.Tensor] | None = None,
    overwrite: bool = False,
) -> torch.Tensor:
    """``conv(silu(norm(x)))`` in strips: ``[1, C, H, W]`` -> ``[1, O, H, W]``.

    Args:
        conv: 3x3, with a padding of 1.
        residual: gives some rows of what is added, ``[1, O, rows, W]``.
        overwrite: put the result where x is; O is C then.
    """
    activate = _activation(x, norm)

    def strips() -> Iterator[torch.Tensor]:
        row_before = x[:, :, :0]
        for first, last, start, end in _strips(*x.shape[2:]):
            strip = x[:, :, start:end]
            if overwrite:
                strip = strip.clone()
                strip[:, :, : first - start] = row_before
                row_before = x[:, :, last - 1 : last].clone()
            strip = activate(strip)
            strip = conv(strip) if residual is None else plus(residual(slice(start, end)), conv, strip)
            yield strip[:, :, first - start : last - start]

    return _assembled(strips(), x.shape[2], x if overwrite else None)


def doubled(x: torch.Tensor, upsample: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``upsample(x)`` in strips: ``[1, C, H, W]`` -> ``[1, O, 2H, 2W]``; its rows depend on one row on either
    side.
    """
    strips = (
        upsample(x[:, :, start:end])[:, :, 2 * (first - start) : 2 * (last - start)]
        for first, last, start, end in _strips(*x.shape[2:])
    )
    return _assembled(strips, 2 * x.shape[2])


def halved(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    """A 3x3 convolution of stride 2, with padding on the right and at the bottom only, in strips: ``[1, C, H,
    W]`` -> ``[1, O, H/2, W/2]``.
    """
    height, width = x.shape[2] // 2, x.shape[3] // 2

    def strips() -> Iterator[torch.Tensor]:
        for first, last, _, _ in _strips(height, width):
            strip = x[:, :, 2 * first : 2 * last + 1]
            yield conv(F.pad(strip, (0, 1, 0, 2 * (last - first) + 1 - strip.shape[2])))

    return _assembled(strips(), height)


def _activation(x: torch.Tensor, norm: nn.GroupNorm) -> Callable[[torch.Tensor], torch.Tensor]:
    """``silu(norm(...))`` for strips of ``x [1, C, H, W]``, with the statistics of all of it."""
    exact = torch.promote_types(x.dtype, torch.float32)
    mean, variance = (
        value.repeat_interleave(x.shape[1] // norm.num_groups).to(exact) for value in _moments(x, norm, exact)
    )
    weight, bias = norm.weight.to(exact), norm.bias.to(exact)

    def activate(strip: torch.Tensor) -> torch.Tensor:
        # A batch normalization of one picture takes a mean and a variance for each channel from elsewhere.
        return F.silu(F.batch_norm(strip, mean, variance, weight, bias, eps=norm.eps), inplace=True)

    return activate


def _moments(x: torch.Tensor, norm: nn.GroupNorm, exact: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each group, ``[G]`` both, from those of the strips."""
    one, zero = (torch.full((x.shape[1],), value, dtype=exact, device=x.device) for value in (1.0, 0.0))
    moments = torch.zeros(2, norm.num_groups, dtype=torch.float64, device=x.device)
    for first, last, _, _ in _strips(*x.shape[2:]):
        strip = x[:, :, first:last]
        if x.device.type != "cpu":  # a CPU reads half precision and gives exact statistics
            strip = strip.to(exact)
        if not strip.is_contiguous(memory_format=torch.channels_last):
            strip = strip.contiguous()
        sizes = (1, x.shape[1], strip[0, 0].numel(), norm.num_groups)
        _, mean, scale = torch.native_group_norm(strip, one, zero, *sizes, norm.eps)
        mean, variance = mean[0].double(), scale[0].double() ** -2 - norm.eps
        moments += torch.stack([mean, variance + mean**2]) * ((last - first) / x.shape[2])
    return moments[0], (moments[1] - moments[0] ** 2).clamp(min=0)
