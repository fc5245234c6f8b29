"""What the tests of the front ends share: pictures, a detector that needs no weights, and a page that
answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pose_stand_ins import body_that_says

from annotator.ade20k import CLASSES
from annotator.openpose import OpenposeDetector
from benchmarks.original_way.openpose import made_up_maps
from controlnet.conditions import DEFAULT
from controlnet.generation.generator import Generator
from controlnet.page.examples import Example

SKY, GRASS, HOUSE, WATER = (CLASSES.index(name) for name in ("sky", "grass", "house", "water"))


class ColorDetector:
    """Names a pixel after the nearest of four colours: exact on the pictures below, deterministic on any."""

    labels_at = np.array([SKY, GRASS, HOUSE, WATER], np.uint8)
    colors = np.array([[120, 180, 250], [60, 160, 60], [190, 60, 50], [30, 60, 160]], np.int32)

    def __init__(self):
        self.calls: list[tuple[int, ...]] = []

    def labels(self, picture: np.ndarray) -> np.ndarray:
        self.calls.append(picture.shape)
        distance = ((picture[:, :, None].astype(np.int32) - self.colors) ** 2).sum(axis=-1)
        return self.labels_at[distance.argmin(axis=-1)]


class GatedDetector(ColorDetector):
    """Computes no map before it is let through; tells when it was entered."""

    def __init__(self):
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def labels(self, picture: np.ndarray) -> np.ndarray:
        self.entered.set()
        self.gate.wait(60)
        return super().labels(picture)


def stand_in(name: str) -> Any:
    """A detector where none ships: every other condition has its own."""
    if name == "seg":
        return ColorDetector()
    if name == "openpose":
        fields, heat = (torch.from_numpy(maps)[None] for maps in made_up_maps(1, 23, 23))
        return OpenposeDetector(body_that_says(fields, heat))
    return None


def draw(height: int = 64, width: int = 64) -> np.ndarray:
    """Sky over grass with a house, uint8 RGB, in the colours that `ColorDetector` knows."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2] = ColorDetector.colors[0]
    picture[height // 2 :] = ColorDetector.colors[1]
    picture[height // 4 : height * 3 // 4, width // 4 : width // 2] = ColorDetector.colors[2]
    return picture


def drawing() -> np.ndarray:
    """Dark lines on paper, uint8 RGB ``[64, 64, 3]``."""
    paper = np.full((64, 64, 3), 240, np.uint8)
    paper[40:43, 8:56] = paper[16:40, 30:33] = 10
    return paper


def start(
    generator: Generator,
    *options: str,
    examples: Sequence[Example] = (),
    condition: str = DEFAULT,
    first: Example | None = None,
) -> Iterator[str]:
    """Serve the page, opened on a condition, on a free port of this machine; yields its address."""
    from controlnet.page import app

    page = app.build_page(generator, examples, condition, first)
    arguments = app.parse_arguments(list(options))
    _, url, _ = app.serve(page, arguments, prevent_thread_lock=True, quiet=True)
    try:
        yield url
    finally:
        page.close(verbose=False)
