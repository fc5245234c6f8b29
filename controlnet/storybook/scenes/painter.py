"""Paints a layout: every thing by the brush that its kind names, far to near."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controlnet.storybook.scenes import backdrop, buildings, figures, ground, plants
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
    "person": figures.paint_person,
    "sheep": figures.paint_sheep,
    "cow": figures.paint_cow,
}


def paint(things: list[Thing], look: Look, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint a layout: the picture, uint8 RGB ``[size, size, 3]``, and its map, uint8 ``[size, size]``."""
    canvas = Canvas(size)
    backdrop.paint_sky(canvas, look)
    for thing in things:
        BRUSHES[thing.kind](canvas, thing, look)
    backdrop.paint_weather(canvas, look)
    return canvas.finish(), canvas.labels
