"""A small picture of each class of the drawn world, for the lists of front ends.

``python -m controlnet.storybook.icons models/tiny/icons.webp`` writes them, side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from annotator.ade20k import CLASSES
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import Look
from ldm.weights import atomic_write

SIDE = 32
"""Of an icon, in pixels."""
THINGS = frozenset(
    (Label.BUILDING, Label.TREE, Label.PERSON, Label.CAR, Label.HOUSE, Label.FENCE, Label.BRIDGE, Label.PALM,
     Label.BOAT, Label.TOWER, Label.ANIMAL)
)  # fmt: skip
"""Classes that are shown whole; of the others a piece will do."""
_SIZE = 512  # of the scenes that they are cut from

Found = tuple[float, tuple[slice, slice]]
"""How well a window shows a class, and the window."""


def class_icons(labels: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """The piece of a scene that shows each class best, of a summer's day: uint8 RGB ``[SIDE, n * SIDE, 3]``.

    Args:
        labels: ADE20K indices of the classes.
        seeds: of the scenes.

    Raises:
        ValueError: a class that no scene has.
    """
    best: dict[int, tuple[float, np.ndarray]] = {}
    look = Look(time="day", season="summer", weather="clear", house_colour="red", car_colour="red",
                boat_colour="red")  # fmt: skip
    for seed in seeds:
        scene = draw_scene(seed, _SIZE, look=look)
        for label in set(np.unique(scene.labels)) & set(labels):
            score, window = (_thing if label in THINGS else _ground)(scene.labels == label)
            if score > best.get(label, (0.0, None))[0]:
                best[label] = score, scene.picture[window]
    if missing := ", ".join(CLASSES[label] for label in labels if label not in best):
        raise ValueError(f"None of {len(seeds)} scenes shows {missing}: more seeds are wanted.")
    icons = [cv2.resize(best[label][1], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for label in labels]
    return np.concatenate(icons, axis=1)


def _thing(mask: np.ndarray) -> Found:
    """The square around the largest piece, the better the larger it is; what is cut off counts little."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    left, top, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
    side = min(int(1.1 * max(width, height)), _SIZE)
    cut_off = min(left, top, _SIZE - left - width, _SIZE - top - height) <= 0
    window = _square(top + height // 2, left + width // 2, side)
    return float(mask[window].mean()) * min(side, 160) * (0.1 if cut_off else 1.0), window


def _ground(mask: np.ndarray) -> Found:
    """A square in the middle of where a class is widest."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    side = max(24, min(96, 3 * int(inside.max())))
    return float(inside.max()), _square(int(row), int(column), side)


def _square(row: int, column: int, side: int) -> tuple[slice, slice]:
    top, left = (int(np.clip(middle - side // 2, 0, _SIZE - side)) for middle in (row, column))
    return slice(top, top + side), slice(left, left + side)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.icons``."""
    parser = argparse.ArgumentParser(description="Write a small picture of each class, side by side.")
    parser.add_argument("target", type=Path, help="WebP to write")
    options = parser.parse_args(arguments)
    with atomic_write(options.target) as unfinished:
        Image.fromarray(class_icons(list(Label), range(60))).save(unfinished, "WEBP", quality=90)


if __name__ == "__main__":
    main()
