"""OpenPose: layers as torch runs them, all 57 maps enlarged to the size of the picture, each blurred, loops
over pairs of joints and over the points between them, and the whole picture blended for each limb.

Weights are random and people are made up.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from annotator.openpose.decoding import FIELD_CHANNELS, Connection, assemble, decode
from annotator.openpose.maps import BOX_SIZE, Enlarging, network_input
from annotator.openpose.model import bodypose_model, handpose_model
from annotator.openpose.people import LIMBS, people_of
from annotator.openpose.util import DRAWN_LIMBS, LIMB_COLORS, draw_people
from benchmarks.original_way import Differ, Pair, equal_values, random_weights, relative_difference
from ldm.packing import pack_weights

PEOPLE = 3
"""In the made-up maps."""

Call = Callable[[], object]
Found = tuple[np.ndarray, np.ndarray]
"""``candidate`` and ``subset``, as ``Body`` gives them."""

STANDING = np.array([
    (0.00, 0.10), (0.00, 0.20), (-0.12, 0.20), (-0.18, 0.36), (-0.22, 0.50), (0.12, 0.20), (0.18, 0.36),
    (0.22, 0.50), (-0.08, 0.50), (-0.09, 0.72), (-0.10, 0.94), (0.08, 0.50), (0.09, 0.72), (0.10, 0.94),
    (-0.03, 0.08), (0.03, 0.08), (-0.07, 0.09), (0.07, 0.09),
])  # fmt: skip
"""x and y of a person of height 1, in the order of KEYPOINT_NAMES."""


def made_up_maps(people: int, rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What a body network might say of a picture with people: fields ``[38, h, w]``, heat ``[19, h, w]``."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)  # [h, w, 2]: x, y
    fields, heat = np.zeros((38, rows, columns)), np.zeros((19, rows, columns))
    for _ in range(people):
        height = rows * random.uniform(0.5, 0.9)
        place = random.uniform((0.15 * columns, 0), (0.85 * columns, rows - height))
        joints = (STANDING + random.normal(0, 0.02, STANDING.shape)) * height + place
        for part, joint in enumerate(joints):
            distance = ((grid - joint) ** 2).sum(axis=2)
            heat[part] = np.maximum(heat[part], 0.9 * np.exp(-distance / 2))
        for channel, (start, end) in zip(FIELD_CHANNELS, LIMBS, strict=True):
            way = joints[end] - joints[start]
            length = max(np.linalg.norm(way), 1e-6)
            along = ((grid - joints[start]) @ way / length).clip(0, length)[..., None]
            near = np.linalg.norm(grid - joints[start] - along * way / length, axis=2) < 1
            fields[channel : channel + 2, near] = (way / length)[:, None]
    noise = 0.01 * random.standard_normal((57, rows, columns))
    return (fields + noise[:38]).astype(np.float32), (heat + noise[38:]).astype(np.float32)


def decode_as_the_original(fields: np.ndarray, heat: np.ndarray, enlarging: Enlarging) -> Found:
    """The peer of ``decode``: the same people, found at full size, pair by pair and point by point."""
    fields, heat = (_enlarge_all(maps, enlarging) for maps in (fields, heat))
    found: list[list[tuple[float, float, float, int]]] = []
    for part in range(18):
        first = sum(map(len, found))
        peaks = enumerate(_peaks_at_full_size(heat[:, :, part]), first)
        found.append([(x, y, heat[y, x, part], number) for number, (x, y) in peaks])
    connections = []
    for channel, (start, end) in zip(FIELD_CHANNELS, LIMBS, strict=True):
        field = fields[:, :, channel : channel + 2]
        pairs = []
        for a, b in product(found[start], found[end]):
            score = _score_point_by_point(field, a, b)
            if score is not None:
                pairs.append(Connection(a[3], b[3], score))
        connections.append(_best_first(pairs))
    candidate = np.array([joint for part in found for joint in part]).reshape(-1, 4)
    return candidate, assemble(candidate, connections)


def _enlarge_all(maps: np.ndarray, enlarging: Enlarging) -> np.ndarray:
    rows, columns = enlarging.used
    pixels = cv2.resize(maps.transpose(1, 2, 0), (0, 0), fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    pixels = pixels[:rows, :columns]
    large = cv2.resize(pixels, enlarging.size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.zeros(large.shape) + large  # a mean over the one scale, in float64


def _peaks_at_full_size(heat: np.ndarray) -> Iterator[tuple[int, int]]:
    blurred = gaussian_filter(heat, sigma=3)
    is_peak = blurred > 0.1
    for axis, shift in product((0, 1), (1, -1)):
        neighbor = np.roll(blurred, shift, axis)
        np.moveaxis(neighbor, axis, 0)[0 if shift == 1 else -1] = 0
        is_peak &= blurred >= neighbor
    rows, columns = np.nonzero(is_peak)
    return zip(columns.tolist(), rows.tolist(), strict=True)


def _score_point_by_point(field: np.ndarray, a: Sequence[float], b: Sequence[float]) -> float | None:
    way = np.subtract(b[:2], a[:2])
    length = max(0.001, math.sqrt(way[0] * way[0] + way[1] * way[1]))
    points = zip(np.linspace(a[0], b[0], 10), np.linspace(a[1], b[1], 10), strict=True)
    seen = np.array([field[round(y), round(x)] for x, y in points])
    along = seen @ (way / length)
    score = sum(along) / 10 + min(0.5 * field.shape[0] / length - 1, 0)
    return score if np.count_nonzero(along > 0.05) > 8 and score > 0 else None


def _best_first(pairs: list[Connection]) -> list[Connection]:
    chosen: list[Connection] = []
    for pair in sorted(pairs, key=lambda pair: pair.score, reverse=True):
        if all(pair.start != other.start and pair.end != other.end for other in chosen):
            chosen.append(pair)
    return chosen


def draw_as_the_original(candidate: np.ndarray, subset: np.ndarray, height: int, width: int) -> np.ndarray:
    """The peer of ``draw_people``: the whole picture is copied and blended for each limb."""
    canvas = np.zeros((height, width, 3), np.uint8)
    for part, row in product(range(18), subset):
        if row[part] >= 0:
            x, y = candidate[int(row[part]), :2].astype(int).tolist()
            cv2.circle(canvas, (x, y), 4, LIMB_COLORS[part], thickness=-1)
    for (limb, color), row in product(zip(DRAWN_LIMBS, LIMB_COLORS, strict=False), subset):
        if min(row[list(limb)]) >= 0:
            start, end = candidate[row[list(limb)].astype(int), :2]
            angle = int(math.degrees(math.atan2(*(start - end)[::-1])))
            middle = ((start + end) / 2).astype(int).tolist()
            outline = cv2.ellipse2Poly(middle, (int(math.dist(start, end) / 2), 4), angle, 0, 360, 1)
            painted = cv2.fillConvexPoly(canvas.copy(), outline, color)
            canvas = cv2.addWeighted(canvas, 0.4, painted, 0.6, 0)
    return canvas


def pose(folder: Path, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """The detector's parts, and all that it does for the bodies in a picture."""
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    x, enlarging = network_input(picture, 0.5 * BOX_SIZE)
    body = network_pair("pose: the body's network", bodypose_model(), x.to(device), dtype)
    yield body
    hand_x, _ = network_input(picture, 1.0 * BOX_SIZE)  # the second of four sizes
    yield network_pair("pose: the hand's network", handpose_model(), hand_x.to(device), dtype)

    maps = made_up_maps(PEOPLE, 23, 23)
    decoding = Pair(
        "pose: who is there",
        lambda: decode(*maps, enlarging),
        lambda: decode_as_the_original(*maps, enlarging),
        same_people,
    )
    yield decoding
    candidate, subset = decode(*maps, enlarging)
    drawing = Pair(
        "pose: the drawing",
        lambda: draw_people(people_of(candidate, subset), size, size),
        lambda: draw_as_the_original(candidate, subset, size, size),
        equal_values,
    )
    yield drawing
    parts = (body, decoding, drawing)
    yield Pair(
        "pose",
        lambda: [part.ours() for part in parts],
        lambda: [part.original() for part in parts],
        lambda ours, theirs: "; ".join(map(_agreement, parts, ours, theirs)),
    )


def _agreement(part: Pair, ours: object, theirs: object) -> str:
    return part.agreement(ours, theirs)


def network_pair(name: str, network: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Pair:
    """A network in float32 as torch runs it, and with packed weights and channels last."""
    eager = random_weights(network).to(x.device)
    ours = copy.deepcopy(eager).to(dtype=dtype, memory_format=torch.channels_last)
    pack_weights(ours)
    return Pair(name, _run(ours, x.to(dtype)), _run(eager, x), relative_difference)


def _run(network: nn.Module, x: torch.Tensor) -> Call:
    @torch.inference_mode()
    def run() -> np.ndarray:
        maps = network(x)
        maps = maps if isinstance(maps, tuple) else (maps,)
        return np.concatenate([part.float().cpu().numpy() for part in maps], axis=1)

    return run


def same_people(ours: Found, original: Found) -> str:
    """The same joints within 1e-4, of the same people."""
    alike = (a.shape == b.shape and np.allclose(a, b, atol=1e-4) for a, b in zip(ours, original, strict=True))
    if not all(alike):
        raise Differ("the two sides find different people")
    candidate, subset = ours
    return f"the same {len(subset)} people, {len(candidate)} joints"
