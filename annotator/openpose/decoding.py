"""From maps to people: peaks of the heat maps are joints, affinity fields say which of them belong together.

Section 3 of Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields"
(2019), with the thresholds and tie-breaking of the original (``annotator/openpose/body.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from annotator.openpose.maps import Enlarging, warm_window
from annotator.openpose.people import KEYPOINT_NAMES, LIMBS

FIELD_CHANNELS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)
"""For each limb of ``LIMBS`` the channel with x of its affinity field; y is the next."""

LEAST_HEAT = 0.1
"""A peak of a blurred heat map must be higher to be a joint."""

LEAST_FIELD = 0.05
"""A field must run along a limb by more than this to count at one of its points."""

POINTS = 10
"""At so many points of a limb the field is looked at, and it must count at more than 80 % of them."""

LEAST_JOINTS = 4
LEAST_SCORE = 0.4
"""A person with fewer joints, or with a lower mean score, is none."""

_SURE_LIMBS = 17  # of LIMBS; the last two only add to people who are there already
_SCORE, _COUNT = 18, 19  # columns of a person's row: sum of scores, number of joints
_PAIRS_AT_ONCE = 10_000


class Connection(NamedTuple):
    """A limb: the numbers of its two joints, and how well the field fits."""

    start: int
    end: int
    score: float


def decode(fields: np.ndarray, heat: np.ndarray, enlarging: Enlarging) -> tuple[np.ndarray, np.ndarray]:
    """People in the body network's maps.

    Args:
        fields: part affinity fields, float32 ``[38, h, w]``.
        heat: heat maps, float32 ``[18 or more, h, w]``.
        enlarging: takes the maps to the size of the picture.

    Returns:
        float64 ``candidate [n, 4]``: x, y (pixels), score and number of all joints found; and ``subset [m,
        20]``: for each person 18 numbers of joints (-1: not found), the sum of scores and the number of
        joints.
    """
    candidate, parts = find_joints(heat[: len(KEYPOINT_NAMES)], enlarging)
    connections = [
        connect(fields[channel : channel + 2], candidate[parts == start], candidate[parts == end], enlarging)
        for channel, (start, end) in zip(FIELD_CHANNELS, LIMBS, strict=True)
    ]
    return candidate, assemble(candidate, connections)


def find_joints(heat: np.ndarray, enlarging: Enlarging) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of the enlarged and blurred heat maps.

    Args:
        heat: float32 ``[parts, h, w]``.

    Returns:
        ``candidate [n, 4]`` as ``decode`` gives it, and the part of each, int ``[n]``; in the order of parts,
        then rows.
    """
    found = []
    for part, large in enumerate(enlarging.each(heat)):
        y, x = _peaks(large)
        found.append(np.stack([x, y, large[y, x], np.full(len(x), part)], axis=1))
    candidate = np.concatenate(found, dtype=np.float64)
    parts = candidate[:, 3].astype(int)
    candidate[:, 3] = np.arange(len(candidate))
    return candidate, parts


def _peaks(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where the blurred map ``[H, W]`` is warm and no lower than at its four neighbours."""
    window = warm_window(heat, LEAST_HEAT)
    if window is None:
        return np.zeros(0, int), np.zeros(0, int)
    center, padded = window.blurred, np.pad(window.blurred, 1)
    is_peak = center > LEAST_HEAT
    for neighbor in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        is_peak &= center >= neighbor
    y, x = np.nonzero(is_peak)
    return y + window.top, x + window.left


def connect(
    field: np.ndarray, starts: np.ndarray, ends: np.ndarray, enlarging: Enlarging
) -> list[Connection]:
    """The limbs of one kind: pairs of joints that the field connects, the best first, each joint in one at
    most.

    Args:
        field: ``[2, h, w]``, x and y of the limb's direction.
        starts: ``[n, 4]`` joints where such a limb may begin: x, y, score, number.
        ends: ``[m, 4]`` joints where it may end.
    """
    if not len(starts) or not len(ends):
        return []
    scores = limb_scores(field.astype(np.float64), starts[:, :2], ends[:, :2], enlarging)
    first, second = np.nonzero(~np.isnan(scores))
    order = np.argsort(-scores[first, second], kind="stable")
    free_starts, free_ends = set(range(len(starts))), set(range(len(ends)))
    connections = []
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if i in free_starts and j in free_ends:
            connections.append(Connection(int(starts[i, 3]), int(ends[j, 3]), float(scores[i, j])))
            free_starts.remove(i)
            free_ends.remove(j)
    return connections


def limb_scores(field: np.ndarray, starts: np.ndarray, ends: np.ndarray, enlarging: Enlarging) -> np.ndarray:
    """How well a field runs from each start to each end (equation 11 of the paper); NaN where it does not.

    A limb longer than half the picture's height loses by its length.

    Args:
        field: ``[2, h, w]``.
        starts: ``[n, 2]``, x and y of pixels.
        ends: ``[m, 2]``.

    Returns:
        ``[n, m]``.
    """
    x, y = np.concatenate([starts, ends]).T.astype(int)
    field = enlarging.window(field, slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1))
    origin = np.array([x.min(), y.min()])
    half_height = 0.5 * enlarging.size[0]
    blocks = math.ceil(len(starts) * len(ends) / _PAIRS_AT_ONCE)
    scores = [
        _scores_in_window(field, block - origin, ends - origin, half_height)
        for block in np.array_split(starts, min(blocks, len(starts)))
    ]
    return np.concatenate(scores)


def _scores_in_window(
    field: np.ndarray, starts: np.ndarray, ends: np.ndarray, half_height: float
) -> np.ndarray:
    way = ends[None] - starts[:, None]  # [n, m, 2]
    length = np.maximum(np.sqrt((way**2).sum(axis=2)), 0.001)
    points = (
        starts[:, None, None] + np.arange(POINTS)[:, None] * (way / (POINTS - 1))[:, :, None]
    )  # [n, m, 10, 2]
    points[:, :, -1] = ends  # exactly, so that rounding finds the pixel
    x, y = np.rint(points).astype(int).transpose(3, 0, 1, 2)
    along = np.einsum("cnmp,nmc->nmp", field[:, y, x], way / length[:, :, None])
    score = along.mean(axis=2) + np.minimum(half_height / length - 1, 0)
    fits = ((along > LEAST_FIELD).sum(axis=2) > 0.8 * POINTS) & (score > 0)
    return np.where(fits, score, np.nan)


def assemble(candidate: np.ndarray, connections: Sequence[Sequence[Connection]]) -> np.ndarray:
    """Put people together from limbs, one kind of limb after the other.

    Args:
        candidate: ``[n, 4]``, all joints.
        connections: the limbs of each kind of ``LIMBS``.

    Returns:
        ``subset [m, 20]`` as ``decode`` gives it: who has four joints at least and a mean score of 0.4.
    """
    people: list[np.ndarray] = []
    for kind, limbs in enumerate(connections):
        for limb in limbs:
            _add_limb(people, candidate, limb, *LIMBS[kind], may_begin=kind < _SURE_LIMBS)
    sure = [row for row in people if row[_COUNT] >= LEAST_JOINTS and row[_SCORE] / row[_COUNT] >= LEAST_SCORE]
    return np.array(sure, np.float64).reshape(-1, 20)


def _add_limb(
    people: list[np.ndarray], candidate: np.ndarray, limb: Connection, start: int, end: int, may_begin: bool
) -> None:
    """Give a limb to the person who has one of its joints; join two people by it; or begin a new one."""
    owners = [row for row in people if row[start] == limb.start or row[end] == limb.end]
    gain = limb.score + candidate[limb.end, 2]
    if not owners:
        if may_begin:
            row = np.full(20, -1.0)
            row[[start, end]] = limb.start, limb.end
            row[_SCORE], row[_COUNT] = candidate[limb.start, 2] + gain, 2
            people.append(row)
        return
    person, other = owners[0], owners[1] if len(owners) > 1 else None
    if other is not None and not np.any((person[:18] >= 0) & (other[:18] >= 0)):
        person[:18] = np.maximum(person[:18], other[:18])
        person[18:] += other[18:]
        person[_SCORE] += limb.score
        people[:] = [row for row in people if row is not other]
    elif other is not None or person[end] != limb.end:
        person[end] = limb.end
        person[_COUNT] += 1
        person[_SCORE] += gain
