"""The paper that a scene is painted on: a picture and its map, side by side.

Whatever names a label is written to both with the same outline: anti-aliased in the picture, with hard edges
in the map, which also keeps the number of the thing that is painted. Whatever names none (light, shadow,
windows) is written to the picture only.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from controlnet.storybook.scenes.looks import Colour

_SHIFT = 4  # OpenCV's fixed point: coordinates in sixteenths of a pixel


class Canvas:
    """A square picture, uint8 RGB ``[size, size, 3]``, and its map, uint8 ``[size, size]``.

    Points are ``[N, 2]`` arrays of (x, y) from (0, 0), the upper left corner, to (1, 1), the lower right one.
    ``thing`` is the number (0 to 255) of what is painted now; ``marks`` has it beside each pixel's label,
    uint16: 256 * thing + label, since painting one plane takes half the time of two.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.thing = 0
        self.picture = np.zeros((size, size, 3), np.uint8)
        self.marks = np.zeros((size, size), np.uint16)

    @property
    def labels(self) -> np.ndarray:
        return self.marks.astype(np.uint8)

    @property
    def things(self) -> np.ndarray:
        """The number of each pixel's thing, uint8 ``[size, size]``."""
        return (self.marks >> 8).astype(np.uint8)

    def mark(self, coverage: np.ndarray, window: tuple[slice, slice], label: int) -> None:
        """Write a label to the map where ``coverage`` (0 to 128) is half or more."""
        self.marks[window][coverage >= 64] = self._value(label)

    def _value(self, label: int) -> int:
        return 256 * self.thing + int(label)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.rint(points * (self.size << _SHIFT) - (1 << _SHIFT - 1)).astype(np.int32)

    def fill(self, points: np.ndarray, colour: Colour, label: int | None = None) -> None:
        """Fill a polygon with one colour."""
        fixed = self._fixed(points)
        cv2.fillPoly(self.picture, [fixed], colour, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.marks, [fixed], self._value(label), cv2.LINE_8, _SHIFT)

    def mask(self, *outlines: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
        """Coverage of a polygon (further ones inside it are holes): int16 0 to 128, and the window it
        covers.
        """
        fixed = [self._fixed(points) for points in outlines]
        low, high = fixed[0].min(0) >> _SHIFT, fixed[0].max(0) >> _SHIFT
        left, top = (min(max(edge - 1, 0), self.size) for edge in low.tolist())
        right, bottom = (min(max(edge + 3, 0), self.size) for edge in high.tolist())
        window = (slice(top, bottom), slice(left, right))
        coverage = np.zeros((bottom - top, right - left), np.uint8)
        if coverage.size:
            moved = [points - (np.array([left, top], np.int32) << _SHIFT) for points in fixed]
            cv2.fillPoly(coverage, moved, 128, cv2.LINE_AA, _SHIFT)
        return coverage.astype(np.int16), window

    def blend(self, coverage: np.ndarray, window: tuple[slice, slice], paint: np.ndarray | Colour) -> None:
        """Lay ``paint`` (one colour, or int16 ``[h, w, 3]``) on by ``coverage`` (int16 ``[h, w]``, 0 to
        128).
        """
        height, width = coverage.shape
        flat: np.ndarray
        if isinstance(paint, tuple):
            flat = np.array([paint], np.int16).repeat(width, 0).reshape(-1)
        else:
            flat = paint.reshape(height, -1)
        # Rows of 3 * width numbers: NumPy is slow wherever its innermost axis is the three channels.
        part = self.picture[window].astype(np.int16).reshape(height, -1)
        step: np.ndarray = flat - part
        step *= cv2.merge((coverage, coverage, coverage)).reshape(height, -1)
        step >>= 7
        part += step
        self.picture[window] = part.reshape(height, width, 3)

    def shade(
        self,
        points: np.ndarray,
        top: Colour,
        bottom: Colour,
        label: int | None = None,
        grain: float = 0.0,
    ) -> tuple[np.ndarray, tuple[slice, slice]]:
        """Fill a polygon with a vertical gradient, ``grain`` (0 to 1) of brush strokes in it; returns its
        mask.
        """
        coverage, window = self.mask(points)
        if not coverage.size:
            return coverage, window
        rows, columns = coverage.shape
        first, last = np.array([top, bottom], np.float32)
        ramp = first + (last - first) * _steps(rows)
        paint = cv2.resize(ramp.astype(np.int16)[:, None], (columns, rows), interpolation=cv2.INTER_NEAREST)
        if grain:
            paint += _strokes(self.size, grain)[window]
            np.clip(paint, 0, 255, out=paint)
        self.blend(coverage, window, paint)
        if label is not None:
            self.mark(coverage, window, label)
        return coverage, window

    def lines(
        self, polylines: list[np.ndarray], colour: Colour, width: float, label: int | None = None
    ) -> None:
        """Draw polylines, ``width`` of the picture's side wide."""
        if not polylines:
            return
        fixed = [self._fixed(points) for points in polylines]
        pixels = max(1, round(width * self.size))
        cv2.polylines(self.picture, fixed, False, colour, pixels, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.polylines(self.marks, fixed, False, self._value(label), pixels, cv2.LINE_8, _SHIFT)

    def dots(self, points: np.ndarray, colour: Colour, radius: float, label: int | None = None) -> None:
        """Draw discs of ``radius`` (of the picture's side)."""
        reach = max(8, round(radius * self.size * (1 << _SHIFT)))
        for x, y in self._fixed(points).tolist():
            cv2.circle(self.picture, (x, y), reach, colour, -1, cv2.LINE_AA, _SHIFT)
            if label is not None:
                cv2.circle(self.marks, (x, y), reach, self._value(label), -1, cv2.LINE_8, _SHIFT)

    def soft(
        self,
        sprite: np.ndarray,
        box: tuple[float, float, float, float],
        colour: Colour,
        strength: float = 1.0,
        only: int | None = None,
    ) -> None:
        """Lay a soft sprite (uint8 coverage) stretched over ``box`` (left, top, right, bottom), ``only`` on a
        label.
        """
        left, top, right, bottom = (round(edge * self.size) for edge in box)
        if (
            right - left < 1
            or bottom - top < 1
            or left >= self.size
            or top >= self.size
            or right <= 0
            or bottom <= 0
        ):
            return
        coverage = cv2.resize(sprite, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        window = (slice(max(top, 0), min(bottom, self.size)), slice(max(left, 0), min(right, self.size)))
        coverage = coverage[
            window[0].start - top : window[0].stop - top, window[1].start - left : window[1].stop - left
        ]
        coverage = (coverage.astype(np.int16) * int(strength * 128)) >> 8
        if only is not None:
            coverage *= self.marks[window].astype(np.uint8) == only
        self.blend(coverage, window, colour)

    def finish(self) -> np.ndarray:
        """The picture on its paper: a faint grain and a little less light in the corners; uint8 RGB."""
        return cv2.multiply(self.picture, _paper(self.size), scale=1 / 240)


@cache
def glow() -> np.ndarray:
    """A round sprite that fades outwards: light around the sun, or a soft shadow; uint8 ``[128, 128]``."""
    axis = np.linspace(-1, 1, 128, dtype=np.float32)
    distance = np.hypot(axis[:, None], axis[None, :])
    return (255 * np.clip(1 - distance, 0, 1) ** 1.6).astype(np.uint8)


@cache
def clouds() -> list[np.ndarray]:
    """Six clouds with flat bellies, uint8 ``[64, 128]`` coverage."""
    rng = np.random.default_rng(20)
    sprites = []
    for _ in range(6):
        sprite = np.zeros((128, 256), np.uint8)
        for _ in range(14):
            x = rng.normal(128, 42)
            reach = rng.uniform(14, 38) * (1 - abs(x - 128) / 150)
            cv2.circle(sprite, (int(x), int(96 - reach * 0.7)), max(4, int(reach)), 255, -1)
        sprite[98:] = 0
        soft = cv2.GaussianBlur(sprite, (0, 0), 5)
        sprites.append(cv2.resize(soft, (128, 64), interpolation=cv2.INTER_AREA))
    return sprites


def _noise(size: int, cells: int, seed: int) -> np.ndarray:
    """Smooth noise of standard deviation 1, float32 ``[size, size]``, about ``cells`` bumps a side."""
    bumps = np.random.default_rng(seed).standard_normal((cells, cells)).astype(np.float32)
    field = cv2.resize(bumps, (size, size), interpolation=cv2.INTER_CUBIC)
    return field / field.std()


@cache
def _steps(rows: int) -> np.ndarray:
    """0 to 1 down the rows of a gradient, float32 ``[rows, 1]``."""
    return np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None]


@cache
def _strokes(size: int, grain: float) -> np.ndarray:
    """Broad horizontal brush strokes around 0, int16 ``[size, size, 3]``."""
    strokes = np.zeros((size, size), np.float32)
    for seed, (across, down) in enumerate(((4, 18), (8, 30))):
        field = np.random.default_rng(seed).standard_normal((down, across)).astype(np.float32)
        strokes += cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
    strokes = (strokes / strokes.std() * 8 * grain).astype(np.int16)
    return cv2.merge((strokes, strokes, strokes))


@cache
def _paper(size: int) -> np.ndarray:
    """Factors around 240 for :meth:`Canvas.finish`, uint8 ``[size, size, 3]``."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    corner = (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    light = 244 - 22 * corner**2 + 2.0 * _noise(size, 10, 5)
    return np.repeat(np.clip(light, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
