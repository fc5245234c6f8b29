"""Draws the scenes in ``examples/``, pictures and maps: ``python -m controlnet.storybook.draw_examples``

Their layouts are of seeds from which nothing has learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from controlnet.files import EXAMPLES
from controlnet.storybook.dataset import HELD_OUT_SEED, draw_scene
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import Look

SCENES = {
    "beach": (700237, Look(season="summer", house_colour="purple", boat_colour="red")),
    "river": (700679, Look("sunset", "spring", house_colour="yellow")),
    "farm": (700025, Look("sunset", "autumn", house_colour="yellow")),
    "lake": (700040, Look("day", "winter", "snow", house_colour="white", boat_colour="green")),
    "town": (700041, Look("day", "winter", car_colour="yellow")),
    "night": (700137, Look("night", "autumn", house_colour="white", boat_colour="green")),
}
"""Seed above `HELD_OUT_SEED`, and look, of each."""
MASKED = ("lake", Label.BOAT)  # the scene and the thing that inpainting is shown with


def draw_examples(folder: Path) -> None:
    """Write ``NAME.png`` and ``NAME_map.png`` (ADE20K indices) of every scene, and one mask.

    Raises:
        OSError: the folder cannot be written to.
    """
    for name, (seed, look) in SCENES.items():
        scene = draw_scene(HELD_OUT_SEED + seed, look=look)
        Image.fromarray(scene.picture).save(folder / f"{name}.png", optimize=True)
        Image.fromarray(scene.labels).save(folder / f"{name}_map.png", optimize=True)
        if name == MASKED[0]:
            thing = (scene.labels == MASKED[1]).astype(np.uint8) * 255
            around = cv2.dilate(thing, np.ones((21, 21), np.uint8))
            Image.fromarray(around).save(folder / f"{name}_mask.png", optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.draw_examples``."""
    parser = argparse.ArgumentParser(
        prog="python -m controlnet.storybook.draw_examples", description="Draw the scenes of the examples."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=EXAMPLES, help="(default %(default)s)")
    draw_examples(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    main()
