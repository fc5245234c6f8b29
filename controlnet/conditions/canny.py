"""Canny edges (the original's ``gradio_canny2image.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from controlnet.conditions.base import Condition, ConditionError, Hint, HintReport, Option, Score
from controlnet.conditions.lines import edge_score, read_lines
from controlnet.pictures import PictureSource


class Canny(Condition):
    """Hints are uint8 ``[H, W]``, 255 on edges."""

    name = "canny"
    title = "Canny edges"
    noun = "edge map"
    is_measured = True
    options = (
        Option("low_threshold", "Canny low threshold", default=100, low=1, high=255),
        Option("high_threshold", "Canny high threshold", default=200, low=1, high=255),
    )
    detect_resolution = None
    editor = "draw"
    nothing_found = "No edge was found: lower both thresholds."

    def make_detector(self) -> Any:
        from annotator.canny import CannyDetector

        return CannyDetector()

    @classmethod
    def checked_options(cls, options: Mapping[str, Any]) -> dict[str, float]:
        checked = super().checked_options(options)
        low, high = checked["low_threshold"], checked["high_threshold"]
        if low > high:
            raise ConditionError(f"low_threshold must not exceed high_threshold, got {low} and {high}.")
        return checked

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        return read_lines(source, self.noun)

    def show(self, hint: Hint) -> np.ndarray:
        return 255 - self.control(hint)

    def score(self, hint: Hint, found: Hint) -> Score:
        return edge_score(hint, found)


CONDITION = Canny
