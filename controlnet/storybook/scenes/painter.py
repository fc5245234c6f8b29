"""Paints a layout: every thing by the brush that its kind names, far to near."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from controlnet.storybook.scenes import backdrop, buildings, figures, ground, people, plants
from controlnet.storybook.scenes.canvas import Canvas
from controlnet.storybook.scenes.layout import Thing
from controlnet.storybook.scenes.looks import Look

Brush = Callable[[Canvas, Thing, Look], None]

BRUSHES: dict[str, Brush] = {
    "mountain": backdrop.paint_mountain,
    "hill": backdrop.paint_hill,
    "grass": ground.paint_grass,
    "sand": ground.paint_sand,
    "earth": ground.paint_earth,
    "field": ground.paint_field,
    "flower": ground.paint_flowers,
    "path": ground.paint_path,
    "road": ground.paint_road,
    "road_away": ground.paint_road_away,
    "sea": ground.paint_sea,
    "lake": ground.paint_lake,
    "river": ground.paint_river,
    "tree": plants.paint_tree,
    "pine": plants.paint_pine,
    "palm": plants.paint_palm,
    "house": buildings.paint_house,
    "building": buildings.paint_building,
    "tower": buildings.paint_tower,
    "bridge": buildings.paint_bridge,
    "fence": buildings.paint_fence,
    "boat": figures.paint_boat,
    "car": figures.paint_car,
    "car_behind": figures.paint_car_behind,
    "person": people.paint_person,
    "sheep": figures.paint_sheep,
    "cow": figures.paint_cow,
}


def paint(things: list[Thing], look: Look, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint a layout.

    Returns:
        the picture, uint8 RGB ``[size, size, 3]``; its map, uint8 ``[size, size]``; and its inverse depth,
        float32 ``[size, size]`` from 0 (sky) to 1 (ground at the lower edge).
    """
    canvas = Canvas(size)
    backdrop.paint_sky(canvas, look)
    for number, thing in enumerate(things, start=1):
        canvas.thing = number
        BRUSHES[thing.kind](canvas, thing, look)
    backdrop.paint_weather(canvas, look)
    return canvas.finish(), canvas.labels, _depth(things, canvas.things)


def _depth(things: list[Thing], numbers: np.ndarray) -> np.ndarray:
    """The inverse depth of every pixel, from the number of its thing (0 for the sky)."""
    nearness = np.zeros((2, 256), np.float32)
    nearness[:, 1 : len(things) + 1] = np.array([thing.nearness for thing in things], np.float32).T
    level, gain = (cv2.LUT(numbers, table) for table in nearness)
    rows = (np.arange(len(numbers), dtype=np.float32) + 0.5) / len(numbers)
    return level + gain * rows[:, None]
