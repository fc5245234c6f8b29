"""Scenes as items for the trainings of detectors: pictures like those that a model makes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from controlnet.storybook.scenes.labels import Label
from controlnet.training.data.dataset import Draw

BEFORE_THE_SKY = (Label.MOUNTAIN, Label.HILL, Label.BUILDING)
"""What may be missing from a scene, with nothing but sky in its place."""


class Scenes(Dataset):
    """So many scenes, drawn when they are asked for.

    Args:
        first_seed: seed of item 0.
        count: number of items.
        seed: of what happens to them.
    """

    def __init__(self, first_seed: int, count: int, seed: int = 0) -> None:
        self.first_seed, self.count, self.seed = first_seed, count, seed

    def __len__(self) -> int:
        return self.count

    def describe(self, index: int) -> str:
        """What an item is made of, for messages."""
        return f"storybook scene of seed {self.first_seed + index}"

    def place(self, key: int | Draw) -> tuple[int, int, np.random.Generator]:
        """For what a loader asks for: which item, the how many-th of the training it is, and its chance."""
        index, position = key if isinstance(key, Draw) else (key, key)
        return index, position, np.random.default_rng((self.seed, position))

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        raise NotImplementedError


def degrade(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a drawn picture like a generated one: soft, drifting in colour, noisy; each only now and then.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        rng: decides which and how much.

    Returns:
        uint8 RGB of the same shape.
    """
    height, width = picture.shape[:2]
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 1.6)))
    changed = picture.astype(np.float32)
    if rng.random() < 0.5:
        changed = changed * rng.uniform(0.9, 1.1, 3).astype(np.float32) + float(rng.uniform(-8, 8))
    if rng.random() < 0.3:
        blotches = rng.normal(0, float(rng.uniform(2, 9)), (height // 8, width // 8, 3)).astype(np.float32)
        changed += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        changed += rng.standard_normal(changed.shape, np.float32) * float(rng.uniform(2, 10))
    return np.clip(changed, 0, 255).astype(np.uint8)


def flatten(
    picture: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make a drawn picture like one that a person paints with a few pens: each class in one to three plain
    colours, near those that it has, now and then with dark outlines, or with bare sky over the horizon.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        labels: its map, uint8 ``[H, W]``.
        rng: decides how many colours and which, the outlines, and what is left out.

    Returns:
        uint8 RGB of the same shape, and its map.
    """
    soft = cv2.medianBlur(np.ascontiguousarray(picture), 5).astype(np.float32)  # no speckles
    labels, sky = labels.copy(), soft[labels == Label.SKY]
    for label in BEFORE_THE_SKY:
        if rng.random() < 0.3 and len(sky):
            soft[labels == label] = rng.choice(sky)  # or a pen would draw it again
            labels[labels == label] = Label.SKY
    flat = np.empty_like(soft)
    for label in np.unique(labels):
        place = labels == label
        colours = soft[place]  # [N, 3]
        pens = rng.choice(colours, int(rng.integers(1, 4)))  # [K, 3], the colours of some of its pixels
        nearest = np.square(colours[:, None] - pens).sum(axis=2).argmin(axis=1)
        flat[place] = (pens + rng.uniform(-12, 12, pens.shape))[nearest]
    if rng.random() < 0.4:
        width = int(rng.integers(2, 5))
        borders = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((width, width), np.uint8)) > 0
        flat[borders] = rng.uniform(0, 70)
    return np.clip(flat, 0, 255).astype(np.uint8), labels


def channels_first(picture: np.ndarray) -> np.ndarray:
    """``[H, W, 3] -> [3, H, W]``, a copy."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
