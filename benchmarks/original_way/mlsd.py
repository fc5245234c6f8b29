"""M-LSD: the plain network, eager, with BatchNorm by itself; float64 input; points looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from annotator.mlsd import MLSDdetector, MobileV2_MLSD_Large
from benchmarks.original_way import Pair, equal_values
from ldm.weights import load_file_into

THRESHOLDS = (0.1, 0.1)
"""Least score, and least length in pixels of the maps."""


def mlsd(folder: Path, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """With the weights that ship; a side is a multiple of 16."""
    picture = picture_of_rooms(size)
    detector, original = MLSDdetector(device=device, dtype=dtype), OriginalWay(device)
    yield Pair("mlsd", lambda: detector(picture, *THRESHOLDS), lambda: original(picture), equal_values)


def picture_of_rooms(size: int) -> np.ndarray:
    """uint8 RGB ``[size, size, 3]``, full of straight edges."""
    random = np.random.default_rng(0)
    picture = np.full((size, size, 3), 200, np.uint8)
    for _ in range(40):
        corners = random.integers(0, size, (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(picture, cv2.convexHull(corners), random.integers(0, 256, 3).tolist())
    return picture


class OriginalWay:
    """The peer of ``MLSDdetector``: uint8 RGB ``[H, W, 3]`` -> uint8 ``[H, W]``, lines drawn in white."""

    def __init__(self, device: torch.device):
        self.device = device
        self.model = MobileV2_MLSD_Large()
        load_file_into(self.model, MLSDdetector.default_checkpoint())
        self.model.to(device).eval()

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        array = np.concatenate([resized, np.ones([height, width, 1])], axis=-1)
        array = np.expand_dims(array.transpose(2, 0, 1), 0).astype(np.float32) / 127.5 - 1.0
        maps = self.model(torch.from_numpy(array).float().to(self.device))
        canvas = np.zeros_like(picture)
        for line in self._lines(maps):
            x_1, y_1, x_2, y_2 = (int(value) for value in line)
            cv2.line(canvas, (x_1, y_1), (x_2, y_2), [255, 255, 255], 1)
        return canvas[:, :, 0]

    def _lines(self, maps: torch.Tensor) -> np.ndarray:
        scores = torch.sigmoid(maps[:, 0])
        scores = scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores).float()
        best, indices = (found.cpu().numpy() for found in torch.topk(scores.reshape(-1), 200))
        offsets = maps[0, 1:5].permute(1, 2, 0).cpu().numpy()
        lengths = np.sqrt(np.sum((offsets[:, :, :2] - offsets[:, :, 2:]) ** 2, axis=-1))
        lines = []
        for score, index in zip(best, indices, strict=True):
            y, x = divmod(int(index), maps.shape[3])
            if score > THRESHOLDS[0] and lengths[y, x] > THRESHOLDS[1]:
                lines.append(np.array([x, y, x, y]) + offsets[y, x])
        return 2 * np.array(lines)
