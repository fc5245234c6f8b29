"""From M-LSD's maps to line segments and a picture of them (the original's ``annotator/mlsd/utils.py``)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LINES = 200
"""No more segments are found in a picture, however many there are."""


def decode_lines(maps: Tensor, value_threshold: float, distance_threshold: float) -> np.ndarray:
    """Find line segments in the maps of one picture.

    Centres are where the score is largest among its neighbours, 3x3; of those the 200 best are looked at.

    Args:
        maps: ``[1, C, h, w]`` with C >= 5, as ``MobileV2_MLSD_Large`` gives them.
        value_threshold: least score of a segment, in [0, 1].
        distance_threshold: least length of a segment, in pixels of the map.

    Returns:
        float64 ``[N, 4]``: x and y of the start, x and y of the end, in pixels of the map; the best score
        first. N may be 0, and ends may lie outside the picture.

    Raises:
        ValueError: the maps hold NaN or infinity.
    """
    maps = maps[0, :5].float()
    if not maps.isfinite().all():
        raise ValueError(
            "The line detector's network gave NaN or infinity: its weights are damaged, or its dtype is too "
            "narrow for this picture. Give it dtype=torch.float32."
        )
    scores = maps[:1].sigmoid()
    peaks = F.max_pool2d(scores, kernel_size=3, stride=1, padding=1)
    scores = torch.where(scores == peaks, scores, 0).flatten()
    scores, indices = scores.topk(min(MOST_LINES, len(scores)))
    offsets = maps[1:].flatten(1)[:, indices].T  # [K, 4]
    lengths = (offsets[:, :2] - offsets[:, 2:]).square().sum(dim=1).sqrt()
    found = (scores > value_threshold) & (lengths > distance_threshold)
    width = maps.shape[2]
    centers = torch.stack([indices % width, indices // width] * 2, dim=1)
    return (centers + offsets.double())[found].cpu().numpy()


def draw_lines(lines: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw segments ``[N, 4]`` (x and y of both ends, in pixels) white on black: uint8 ``[H, W]``.

    Lines are one pixel wide. Coordinates are cut to whole pixels, towards zero.
    """
    canvas = np.zeros((height, width), np.uint8)
    ends = lines.astype(np.int32).reshape(-1, 2, 2)
    cv2.polylines(canvas, list(ends), isClosed=False, color=255, thickness=1)
    return canvas
