"""Drawings: dark lines on paper (the original's ``gradio_scribble2image.py`` and its interactive form)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from controlnet.conditions.base import Condition, Hint, HintReport, Option
from controlnet.conditions.lines import read_lines
from controlnet.pictures import PictureSource

_INK = 127  # darker pixels are lines


class Scribble(Condition):
    """Hints are uint8 ``[H, W]``, 255 on lines. A person draws, so nothing is detected: dark is line."""

    name = "scribble"
    title = "Scribble"
    noun = "drawing"
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            "invert", "White lines on black", default=0, low=0, high=1, original=False,
            help="The picture is a drawing in white on a dark ground.",
        ),
    )  # fmt: skip
    detect_resolution = None
    control_names = ("control_sd15_scribble", "control_v11p_sd15_scribble")
    editor = "draw"
    nothing_found = "No dark line was found: is the drawing white on black? Then turn on invert."

    def load(self) -> None:
        """There is no network."""

    def checkpoint_names(self) -> tuple[str, ...]:
        """None: there is no network."""
        return ()

    def detect(self, picture: np.ndarray, invert: float = 0) -> Hint:
        """uint8 RGB ``[H, W, 3]`` -> uint8 ``[H, W]``."""
        lines = picture.max(axis=2) > 255 - _INK if invert else picture.min(axis=2) < _INK
        return np.where(lines, 255, 0).astype(np.uint8)

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        return read_lines(source, self.noun)

    def show(self, hint: Hint) -> np.ndarray:
        return 255 - self.control(hint)

    def remarks(self, hint: Hint, picture: np.ndarray | None = None) -> list[str]:
        share = float((hint > 127).mean())
        if share > 0.5:
            return [f"{share:.0%} of the hint is line: the drawing is white on black. Turn on invert."]
        return super().remarks(hint, picture)


CONDITION = Scribble
