"""Straight lines by M-LSD (the original's ``gradio_hough2image.py``)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Condition, Hint, HintReport, Option, Score
from controlnet.conditions.lines import near, read_lines, share_near
from controlnet.pictures import PictureSource

_TOLERANCE = 3  # pixels; nearest-neighbour scaling alone moves a line by one or two


class Hough(Condition):
    """Hints are uint8 ``[H, W]``, 255 on lines one pixel wide."""

    name = "hough"
    title = "Straight lines"
    noun = "line drawing"
    is_measured = True
    options = (
        Option("value_threshold", "Hough value threshold (MLSD)", default=0.1, low=0.01, high=2.0, step=0.01),
        Option(
            "distance_threshold", "Hough distance threshold (MLSD)",
            default=0.1, low=0.01, high=20.0, step=0.01,
        ),
    )  # fmt: skip
    detect_label = "Hough resolution"
    interpolation = cv2.INTER_NEAREST
    control_names = ("control_sd15_mlsd", "control_v11p_sd15_mlsd")
    editor = "draw"
    nothing_found = "No straight line was found: lower the value threshold."

    def make_detector(self) -> Any:
        from annotator.mlsd import MLSDdetector

        return MLSDdetector(self.weights, device=self.device)

    def detect(
        self, picture: np.ndarray, value_threshold: float = 0.1, distance_threshold: float = 0.1
    ) -> Hint:
        return self.detector(picture, value_threshold, distance_threshold)

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        return read_lines(source, self.noun)

    def show(self, hint: Hint) -> np.ndarray:
        """Dark lines on white, thick enough to be seen; the network sees the thin ones."""
        return 255 - HWC3(cv2.dilate(hint, np.ones((3, 3), np.uint8)))

    def score(self, hint: Hint, found: Hint) -> Score:
        """The share of the lines asked for that the detector finds in the result, by length."""
        asked, seen = hint > 127, found > 127
        value = share_near(asked, seen, _TOLERANCE)
        return Score("lines found", value, value, {}, asked & ~near(seen, _TOLERANCE))


CONDITION = Hough
