"""Makes the pictures of docs/gallery.md: python -m docs.make_gallery

One picture for each condition: what a person gives, and the hint. Where a model here was
trained for a condition, its picture follows. Nothing is needed that the project does not hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotator.midas.maps import depth_picture, normal_picture
from annotator.uniformer import SegmentationDetector
from controlnet.conditions import Condition, all_conditions
from controlnet.generation.generator import Generator
from controlnet.generation.grid import Axis, Grid, generate_grid
from controlnet.generation.loading import load_generator
from controlnet.generation.models import ModelFiles, known_models
from controlnet.generation.request import Request
from controlnet.generation.sheet import compose_sheet
from controlnet.pictures import read_picture
from controlnet.storybook.dataset import HELD_OUT_SEED, Scene, draw_scene
from controlnet.storybook.hints import DEPTH_RANGE

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "gallery"
SEED = HELD_OUT_SEED + 13  # a scene with much in it, from which no network here has learned
PROMPT = "a red house by a lake in spring, at sunset"
PROMPTS = (
    "a red house in spring, by day", "a yellow house in autumn, at sunset", "a blue house in winter at night",
)  # fmt: skip
SIDE = 320
GAP = 8
# What people draw or bring, instead of a picture that is looked at.
BROUGHT = {"scribble": "drawing.png", "scribble_interactive": "drawing.png", "openpose": "people.png"}


class DrawnDepth:
    """The depth that a scene was drawn with, in place of a network's."""

    def __init__(self, scene: Scene):
        self.depth = scene.depth * DEPTH_RANGE

    def __call__(self, picture: np.ndarray, bg_th: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
        return depth_picture(self.depth), normal_picture(self.depth, bg_th=bg_th)


def condition_of(kind: type[Condition], files: ModelFiles, scene: Scene) -> Condition:
    """The condition with a detector that works without a download."""
    detector: Any = None
    if kind.name == "seg":
        detector = SegmentationDetector(files.detector_weights, files.detector_config)
    elif kind.name in ("depth", "normal") and kind().missing_weights():
        detector = DrawnDepth(scene)
    return kind(detector)


def panels(condition: Condition, generator: Generator, files: ModelFiles, scene: Scene) -> list[np.ndarray]:
    """What is given, the hint, and perhaps a result: uint8 RGB ``[H, W, 3]`` each."""
    if condition.name in BROUGHT:
        given = read_picture(ROOT / "examples" / BROUGHT[condition.name])
        hint = condition.read(given).hint
        shown = condition.control(hint)
    else:
        given = scene.picture
        hint = condition.hint(given, given.shape[0])
        shown = condition.show(condition.fit(hint, SIDE, SIDE))  # at this size, so that thin lines stay whole
    found = [given] if np.array_equal(given, shown) else [given, shown]
    if condition.name in (*files.own, *files.controls):
        request = Request(None, PROMPT, hint=hint, condition=condition.name, seed=1)
        found.append(generator.generate(request).pictures[0])
    return found


def strip(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures side by side on white."""
    sheet = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(
            Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP), 0)
        )
    return sheet


def grid(generator: Generator, scene: Scene) -> Image.Image:
    """Three prompts, four seeds, one map."""
    request = Request(None, "", hint=scene.labels).for_model(generator.resolution, generator.guidance)
    wanted = Grid(Axis("prompt", PROMPTS), Axis("seed", (1, 2, 3, 4)))
    cells = generate_grid(generator, wanted, wanted.requests(request))
    pictures = {(cell.row, cell.column): cell.result.pictures[0] for cell in cells}
    return Image.fromarray(compose_sheet(pictures, wanted.rows.labels, wanted.columns.labels).picture)


def main() -> None:
    files = known_models()["tiny"]
    generator = load_generator(files)
    scene = draw_scene(SEED, 512)
    FOLDER.mkdir(exist_ok=True)
    for name, kind in all_conditions().items():
        condition = condition_of(kind, files, scene)
        strip(panels(condition, generator, files, scene)).save(FOLDER / f"{name}.webp", quality=88, method=6)
    grid(generator, scene).save(FOLDER.with_name("grid.webp"), quality=85, method=6)


if __name__ == "__main__":
    main()
