"""Soft edges by HED (the original's ``gradio_hed2image.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from controlnet.conditions.base import Condition, Hint, HintReport, Score
from controlnet.conditions.lines import edge_score, read_lines
from controlnet.pictures import PictureSource


class Hed(Condition):
    """Hints are uint8 ``[H, W]``, bright on edges, with all greys."""

    name = "hed"
    title = "HED soft edges"
    noun = "edge map"
    is_measured = True
    detect_label = "HED resolution"
    control_names = ("control_sd15_hed", "control_v11p_sd15_softedge")
    editor = "draw"
    nothing_found = "No edge was found."

    def make_detector(self) -> Any:
        from annotator.hed import HEDdetector

        return HEDdetector(self.weights, device=self.device)

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        return read_lines(source, self.noun, soft=True)

    def score(self, hint: Hint, found: Hint) -> Score:
        return edge_score(hint, found)


CONDITION = Hed
