"""Convolving before enlarging gives what enlarging before convolving gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from annotator.uniformer.upernet_inference import convolve_enlarged


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes", [[(16, 24), (8, 12), (4, 6), (2, 3)], [(13, 17), (7, 9), (4, 5), (1, 1)], [(5, 3)]], ids=str
)
def test_convolve_enlarged(sizes: list[tuple[int, int]], align_corners: bool):
    maps = [
        torch.randn(2, channels, *size, dtype=torch.float64) for channels, size in enumerate(sizes, start=3)
    ]
    enlarged = [F.interpolate(x, sizes[0], mode="bilinear", align_corners=align_corners) for x in maps]
    weight = torch.randn(7, sum(x.shape[1] for x in maps), 3, 3, dtype=torch.float64)
    bias = torch.randn(7, dtype=torch.float64)
    expected = F.conv2d(torch.cat(enlarged, dim=1), weight, bias, padding=1)
    torch.testing.assert_close(
        convolve_enlarged(maps, weight, bias, align_corners), expected, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        convolve_enlarged(maps, weight, None, align_corners),
        expected - bias[:, None, None],
        rtol=1e-10,
        atol=1e-10,
    )
