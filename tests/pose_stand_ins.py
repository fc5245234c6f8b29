"""Networks that say of any picture what a test wants the pose detector to hear."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from annotator.openpose import Body, Hand


class _Says(nn.Module):
    def __init__(self, *maps: Tensor):
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.maps


class _LooksUp(nn.Module):
    def __init__(self, maps: Mapping[int, Tensor]):
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        return self.maps[x.shape[-1] // 8][None].float() / 255


def body_that_says(fields: Tensor, heat: Tensor) -> Body:
    """A body detector whose network gives these maps, ``[1, 38, h, w]`` and ``[1, 19, h, w]``."""
    body = Body(device="cpu")
    body.model = _Says(fields, heat)
    return body


def hand_that_looks_up(maps: Mapping[int, Tensor]) -> Hand:
    """A hand detector whose network gives ``maps[n] / 255``, uint8 ``[22, n, n]``, for 8n x 8n pixels."""
    hand = Hand(device="cpu")
    hand.model = _LooksUp(maps)
    return hand


def body_that_sees_nobody(rows: int = 23, columns: int = 23) -> Body:
    """A body detector whose network finds nothing but background."""
    return body_that_says(torch.zeros(1, 38, rows, columns), torch.zeros(1, 19, rows, columns))
