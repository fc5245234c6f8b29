"""Between pictures and the networks' maps: what goes in, how what comes out is enlarged, where it is warm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from annotator.openpose.model import STRIDE

BOX_SIZE = 368
"""Height in pixels of a person, and side of a hand's square, that the networks were trained with."""

MAX_INPUT_PIXELS = 1_000_000
"""A picture that is so wide that the network would see more pixels than this is refused."""

_PADDING_VALUE = 128
_SIGMA = 3.0
_RADIUS = 12  # four sigma, where scipy, too, cuts the Gaussian off


@dataclass(frozen=True)
class Enlarging:
    """Takes a network's maps to the size of the picture.

    In two steps: a cell becomes 8×8 pixels; then the padding is cut off, and the rest is resized.

    Attributes:
        used: rows and columns of the network's input without its padding.
        size: rows and columns of the picture, H and W.
    """

    used: tuple[int, int]
    size: tuple[int, int]

    def each(self, maps: np.ndarray) -> Iterator[np.ndarray]:
        """Maps, float32 ``[C, h, w]`` -> ``[H, W]`` each, one after the other to save memory.

        They are equal to the original's to the last bit, which decides where two pixels share a peak: OpenCV
        takes two channels at once, for it rounds one channel differently from many.
        """
        rows, columns = self.used
        for first in range(0, len(maps), 2):
            pair = maps[first : first + 2]
            cells = np.stack([pair[0], pair[-1]], axis=2)
            pixels = _resize(cells, cells.shape[0] * STRIDE, cells.shape[1] * STRIDE)
            large = _resize(pixels[:rows, :columns], *self.size)
            yield from large.transpose(2, 0, 1)[: len(pair)]

    def window(self, maps: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Some rows and columns of enlarged maps ``[C, h, w]``, float64, equal up to rounding.

        Both steps are linear and treat rows and columns apart, so that they are two matrix products.
        """
        return self._down[rows] @ (maps @ self._across[columns].T)

    @cached_property
    def _down(self) -> np.ndarray:
        """What enlarges a column, ``[H, h]``."""
        return _line_matrix(self.used[0], self.size[0])

    @cached_property
    def _across(self) -> np.ndarray:
        """What enlarges a line, ``[W, w]``."""
        return _line_matrix(self.used[1], self.size[1])


@dataclass(frozen=True)
class WarmWindow:
    """The part of a map outside of which the blurred map is nowhere above a threshold.

    Attributes:
        blurred: float64 ``[rows, columns]``, the map after a Gaussian blur of sigma 3 pixels; correct at
            least to one pixel beyond what is above the threshold. The map is mirrored at its edges.
        top, left: where in the map the window begins.
    """

    blurred: np.ndarray
    top: int
    left: int


def warm_window(heat: np.ndarray, threshold: float) -> WarmWindow | None:
    """Blur a map ``[H, W]`` where it can come out above the threshold; None where it can't anywhere."""
    warm = heat > threshold
    rows, columns = (np.flatnonzero(warm.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    margin = 2 * (_RADIUS + 1)  # so far the blur carries, and one pixel; and so far it sees from there
    top, left = max(rows[0] - margin, 0), max(columns[0] - margin, 0)
    window = heat[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1].astype(np.float64)
    side = 2 * _RADIUS + 1
    return WarmWindow(
        cv2.GaussianBlur(window, (side, side), _SIGMA, borderType=cv2.BORDER_REFLECT), top, left
    )


def network_input(picture: np.ndarray, height: float) -> tuple[Tensor, Enlarging]:
    """Scale a picture to a height and pad it, as the networks want it.

    Args:
        picture: uint8 BGR ``[H, W, 3]``.
        height: of the scaled picture, in pixels.

    Returns:
        the input, float32 ``[1, 3, 8h, 8w]`` in [-0.5, 0.5], and what enlarges the maps that come out.

    Raises:
        ValueError: the picture is too wide or too narrow.
    """
    scale = height / picture.shape[0]
    width = picture.shape[1] * scale
    if not 1 <= width <= MAX_INPUT_PIXELS / height:
        kind = "narrow" if width < 1 else "wide"
        raise ValueError(
            f"A picture of {picture.shape[1]}x{picture.shape[0]} pixels is too {kind}: crop or pad it."
        )
    scaled = cv2.resize(picture, (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    used = scaled.shape[:2]
    padding = [(0, -side % STRIDE) for side in used]
    padded = np.pad(scaled, [*padding, (0, 0)], constant_values=_PADDING_VALUE)
    x = torch.from_numpy(padded.transpose(2, 0, 1)[None].astype(np.float32) / 256 - 0.5)
    return x, Enlarging(used, picture.shape[:2])


def as_array(maps: Tensor) -> np.ndarray:
    """The maps of one picture: ``[1, C, h, w]`` of any type, anywhere -> float32 ``[C, h, w]``.

    Raises:
        ValueError: not all numbers are finite; nobody would be found in such maps, without a word.
    """
    array = maps[0].float().cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"The pose network overflows in {maps.dtype}: run it in float32 or bfloat16.")
    return array


def _line_matrix(used: int, size: int) -> np.ndarray:
    cells = -(-used // STRIDE)
    return _resize(_resize(np.eye(cells), cells * STRIDE, cells)[:used], size, cells)


def _resize(values: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
