"""Hints of every kind for drawn scenes, by the product's own conditions, for the copy that learns them.

What a network would find in photographs is taken from what is known of a scene instead: depth from the
canvas (in training, a part of it from the network), a drawing from the outlines of the map, poses from the
joints that people were drawn by.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import cv2
import numpy as np

from annotator.ade20k import colorize
from annotator.midas.maps import depth_picture, normal_picture
from annotator.openpose.people import Keypoint, Person
from annotator.openpose.util import draw_people
from controlnet.conditions import Condition, find_condition
from controlnet.conditions.base import Hint
from controlnet.generation.request import default_detect_resolution
from controlnet.storybook.dataset import Scene, draw_scene

DEPTH_RANGE = 200.0
"""Raw depth of the nearest ground, of drawn scenes and of the embedded network: at 384 pixels flat ground
then leans by about 45 degrees in a normal map, in the middle of what a ControlNet knows."""
SEEN_DEPTH = 0.4
"""How often in training a network sees depth and normals in the picture, as users have them: blurred, with
small things missing."""
SHARES = {
    "seg": 0.3, "canny": 0.13, "hed": 0.12, "fake_scribble": 0.08, "scribble": 0.09, "hough": 0.08,
    "depth": 0.1, "normal": 0.1, "openpose": 0.05,
}  # fmt: skip
"""How often each condition's hints are drawn in training."""


def drawn_hint(
    scene: Scene,
    condition: Condition,
    window: tuple[slice, slice] = (slice(None), slice(None)),
    random: np.random.Generator | None = None,
) -> Hint:
    """A scene's hint, as the condition keeps it: uint8 ``[h, w]`` or ``[h, w, 3]``.

    Args:
        scene: of any size.
        condition: one of `SHARES`.
        window: rows and columns of the picture that are wanted.
        random: varies thresholds, line widths, sharpness and the detector's resolution; without, they are
            what the page begins with.

    Raises:
        ValueError: another condition.
    """
    name = condition.name
    if name == "seg":
        return scene.labels[window]
    if name in ("depth", "normal"):
        return _depth(scene, condition, random)[window]
    if name == "openpose":
        return _skeletons(scene, condition)[window]
    if name == "scribble":
        return condition.detect(_drawing(scene.labels, random), invert=0)[window]
    if name not in SHARES:
        raise ValueError(f"Drawn scenes have no hints of {name}; known are {', '.join(SHARES)}.")
    picture = np.ascontiguousarray(scene.picture[window])
    side = min(picture.shape[:2])
    detect = default_detect_resolution(condition, side)
    if random is not None:
        detect = round(detect * random.choice((1.0, 1.0, 1.5)))
    return condition.hint(picture, side, detect, **_options(name, random))


def _options(name: str, random: np.random.Generator | None) -> dict[str, float]:
    """Options of a detector, near those that the page begins with."""
    if random is None:
        return {}
    if name == "canny":
        low = int(random.integers(40, 140))
        return {"low_threshold": low, "high_threshold": low + int(random.integers(40, 116))}
    if name == "hough":
        return {"value_threshold": float(random.uniform(0.05, 0.2))}
    return {}


def _depth(scene: Scene, condition: Condition, random: np.random.Generator | None) -> Hint:
    """Depth or normals at the size of the scene: of the canvas, or in training now and then of a network."""
    if random is None or random.random() >= SEEN_DEPTH:
        return _of_depth(scene.depth, condition, random)
    side = min(scene.labels.shape)
    return condition.hint(scene.picture, side, default_detect_resolution(condition, side))


def _of_depth(depth: np.ndarray, condition: Condition, random: np.random.Generator | None) -> Hint:
    """Depth or normals of a canvas, at the size of the canvas by way of the detector's own resolution."""
    height, width = depth.shape
    seen = tuple(default_detect_resolution(condition, side) for side in (width, height))
    raw: np.ndarray = DEPTH_RANGE * cv2.resize(depth, seen, interpolation=cv2.INTER_AREA)
    blur = 0.7 if random is None else float(random.uniform(0.3, 1.5))  # networks do not see as sharply
    raw = cv2.GaussianBlur(raw, (0, 0), blur)
    if condition.name == "depth":
        return condition.fit(depth_picture(raw), height, width)
    threshold = 0.4 if random is None else float(random.choice((0.1, 0.25, 0.4, 0.4)))
    return condition.fit(normal_picture(raw, bg_th=threshold), height, width)


def _skeletons(scene: Scene, condition: Condition) -> Hint:
    """The people of a scene as OpenPose would draw them, at the size of the scene by way of the detector's
    resolution, which decides how broad the limbs are. Joints beyond the picture's edges are not seen.
    """
    height, width = scene.labels.shape
    rows, columns = (default_detect_resolution(condition, side) for side in (height, width))
    people = []
    for person in scene.people * (columns, rows):
        inside = ((person >= 0) & (person < (columns, rows))).all(axis=1)
        people.append(
            Person(tuple(Keypoint(*p) if seen else None for p, seen in zip(person, inside, strict=True)))
        )
    return condition.fit(draw_people(people, rows, columns), height, width)


def _drawing(labels: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
    """The outlines of a map as a person might draw them, dark on white: uint8 RGB ``[H, W, 3]``."""
    width = 3 if random is None else int(random.integers(1, 6))
    if random is not None:
        labels = _wobbled(labels, random)
    edges = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    lines = cv2.dilate(edges.astype(np.uint8), np.ones((width, width), np.uint8))
    return np.repeat(np.where(lines, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _wobbled(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A map with shifts of up to a few pixels that change smoothly from place to place."""
    height, width = labels.shape
    coarse = random.normal(size=(2, height // 32 + 2, width // 32 + 2)).astype(np.float32) * random.uniform(
        0, 2
    )
    shift = [cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC) for part in coarse]
    rows, columns = np.indices((height, width), np.float32)
    return cv2.remap(
        labels, columns + shift[0], rows + shift[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )


@cache
def _condition(name: str) -> Condition:
    """One of each in a process, on the CPU."""
    return find_condition(name)(device="cpu")


class HintedScenes:
    """Scenes with a hint of one condition each, drawn when they are asked for: nothing is kept on disk.

    Takes the same place in ``make_loader`` as ``controlnet.storybook.dataset.StorybookDataset``. Whole scenes
    and windows come in batches of their own; which hint an item has follows from its draw.

    Args:
        first_seed: seed of item 0. Training keeps below ``HELD_OUT_SEED``.
        count: number of items.
        size: side of a whole picture in pixels.
        crop: side of a window, a multiple of 64.
        whole: share of items, in [0, 1], that are whole scenes.
        empty_prompts, dropped_prompt: as in ``controlnet.training.data.dataset.ControlDataset``.
        shares: how often each condition's hints are drawn; by default `SHARES`.
        seed: of everything that is random.
    """

    def __init__(
        self,
        first_seed: int = 0,
        count: int = 1_000_000,
        size: int = 256,
        crop: int = 128,
        whole: float = 0.5,
        empty_prompts: float = 0.0,
        dropped_prompt: str = "",
        shares: Mapping[str, float] = SHARES,
        seed: int = 0,
    ) -> None:
        if count < 1 or not 64 <= crop <= size or crop % 64 or not 0 <= whole <= 1:
            raise ValueError(
                f"count is {count}, crop {crop} and whole {whole}; 1 or more, a multiple of 64 up to "
                f"{size}, and a share are wanted."
            )
        self.first_seed, self.count, self.size, self.crop = first_seed, count, size, crop
        self.empty_prompts, self.dropped_prompt, self.seed = empty_prompts, dropped_prompt, seed
        self.names = list(shares)
        weights = np.array([shares[name] for name in self.names], float)
        self.weights = weights / weights.sum()
        first_window = round(whole * count)
        self.shapes = [size if index < first_window else crop for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def describe(self, index: int) -> str:
        """What an item is made of, for messages."""
        return f"storybook scene of seed {self.first_seed + index}"

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One item.

        Args:
            key: an index, or a ``controlnet.training.data.dataset.Draw`` (index, position) of the training
                stream; an index alone is its own position.

        Returns:
            ``jpg`` float32 ``[H, W, 3]`` RGB in [-1, 1]; ``hint`` and ``map`` (in the colours of ADE20K)
            float32 ``[H, W, 3]`` RGB in [0, 1]; ``labels`` uint8 ``[H/8, W/8]``, the map at the size of its
            latent; ``txt``; ``condition``, whose hint it is. For a ``Draw`` also ``index`` and
            ``noise_seed``, integers.
        """
        index, position = key if isinstance(key, tuple) else (key, key)
        if not 0 <= index < self.count:
            raise IndexError(f"item {index} of {self.count}")
        random = np.random.default_rng((self.seed, position))
        scene = draw_scene(self.first_seed + index, self.size)
        side = self.shapes[index]
        top, left = (int(random.integers(self.size - side + 1)) for _ in range(2))
        window = (slice(top, top + side), slice(left, left + side))
        condition = _condition(str(random.choice(self.names, p=self.weights)))
        hint = condition.control(drawn_hint(scene, condition, window, random))
        item: dict[str, Any] = {
            "jpg": scene.picture[window].astype(np.float32) / 127.5 - 1,
            "hint": hint.astype(np.float32) / 255,
            "map": colorize(scene.labels[window]).astype(np.float32) / 255,
            "labels": scene.labels[window][4::8, 4::8],
            "txt": self.dropped_prompt if random.random() < self.empty_prompts else scene.prompt,
            "condition": condition.name,
        }
        if isinstance(key, tuple):
            item |= {"index": index, "noise_seed": int(random.integers(2**63))}
        return item
