"""Outlines with a hand-drawn wobble: ridges, shores, ribbons and blobs. All return ``[N, 2]`` arrays of (x,
y).
"""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def circle(count: int) -> np.ndarray:
    """``count`` angles once around, in radians; read-only, since all callers with this count share it."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    angle.flags.writeable = False
    return angle


def disc(x: float, y: float, wide: float, high: float, count: int = 16) -> list[tuple[float, float]]:
    """An ellipse, ``wide`` and ``high`` from its middle."""
    angle = circle(count)
    return list(zip(x + wide * np.cos(angle), y + high * np.sin(angle), strict=True))


def capsule(start: np.ndarray, end: np.ndarray, first: float, last: float) -> np.ndarray:
    """A limb: round at both ends, ``first`` half as broad at its ``start`` and ``last`` at its ``end``."""
    angle = np.arctan2(end[1] - start[1], end[0] - start[0]) + np.linspace(np.pi / 2, 3 * np.pi / 2, 6)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.concatenate([start + first * around, end - last * around])


@cache
def _phase(count: int) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, count)


def wave(rng: np.random.Generator, count: int, low: int = 1, high: int = 4) -> np.ndarray:
    """A smooth random curve of ``count`` samples between about -1 and 1: a few sines of falling height."""
    phase = _phase(count)
    curve = np.zeros(count)
    for frequency in range(low, high + 1):
        curve += np.sin(frequency * 0.75 * phase + rng.uniform(0, 2 * np.pi)) / frequency
    return curve / 1.6


def ridge(rng: np.random.Generator, base: float, height: float, count: int = 32) -> np.ndarray:
    """A line of round hills across the picture, from ``base`` up to about ``height`` above it."""
    x = np.linspace(-0.05, 1.05, count)
    y = base - height * (0.5 + 0.5 * np.clip(wave(rng, count), -1, 1))
    return np.concatenate([np.stack([x, y], 1), [[1.05, base + 0.02], [-0.05, base + 0.02]]])


def peak(rng: np.random.Generator, x: float, base: float, height: float, reach: float) -> np.ndarray:
    """One mountain: its summit is the ninth point, between a jagged left and a jagged right flank of eight
    each.
    """
    steps = np.linspace(0, 1, 9)
    rise = steps**1.15 * height
    left = np.stack([x - reach * (1 - steps), base - rise], 1)
    right = np.stack([x + reach * (1 - steps), base - rise], 1)[::-1]
    jags = rng.uniform(-0.06, 0.06, (2, 7, 2)) * height * np.array([1.0, 0.6])
    left[1:8] += jags[0]
    right[1:8] += jags[1]
    return np.concatenate([left, right[1:]])


def blob(
    rng: np.random.Generator,
    x: float,
    y: float,
    wide: float,
    high: float,
    bumps: float = 0.07,
    count: int = 36,
) -> np.ndarray:
    """A round patch of ground in perspective, ``wide`` and ``high`` from its middle."""
    angle = circle(count)
    reach = np.ones(count)
    for frequency in (2, 3, 5):
        reach += bumps * np.sin(frequency * angle + rng.uniform(0, 2 * np.pi))
    return np.stack([x + wide * reach * np.cos(angle), y + high * reach * np.sin(angle)], 1)


def band(
    rng: np.random.Generator,
    top: tuple[float, float],
    bottom: tuple[float, float],
    sway: float,
    count: int = 24,
) -> np.ndarray:
    """A strip across the picture: y at the left and at the right of its ``top`` and ``bottom``; the bottom
    sways.
    """
    x = np.linspace(-0.06, 1.06, count)
    upper = np.interp(x, (0, 1), top)
    lower = np.interp(x, (0, 1), bottom) + sway * wave(rng, count)
    return np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])


def ribbon(
    rng: np.random.Generator,
    start: float,
    end: float,
    horizon: float,
    near: tuple[float, float],
    width: tuple[float, float],
    sway: float,
    count: int = 24,
) -> np.ndarray:
    """A road or river that comes towards us: from x ``start`` far away to ``end``; first the left bank, far
    to near.
    """
    nearness = near[0] + (near[1] - near[0]) * np.linspace(0, 1, count) ** 1.4
    share = (nearness - near[0]) / (near[1] - near[0])
    middle = start + (end - start) * share + sway * wave(rng, count, 2, 4) * share**0.6
    half = (width[0] + (width[1] - width[0]) * share**1.25) / 2
    y = horizon + (1 - horizon) * nearness
    left, right = np.stack([middle - half, y], 1), np.stack([middle + half, y], 1)
    return np.concatenate([left, right[::-1]])


def wedge(
    rng: np.random.Generator, horizon: float, near: tuple[float, float], across: tuple[float, float]
) -> np.ndarray:
    """A field: two edges across, two along rays from the middle of the horizon; ``across`` is its far
    edge.
    """
    top, bottom = (horizon + (1 - horizon) * n for n in near)
    spread = (near[1] + 0.35) / (near[0] + 0.35)
    tilt = rng.uniform(-0.015, 0.015)
    left, right = across
    return np.array(
        [
            [left, top + tilt],
            [right, top - tilt],
            [0.5 + (right - 0.5) * spread, bottom - tilt],
            [0.5 + (left - 0.5) * spread, bottom + tilt],
        ]
    )
