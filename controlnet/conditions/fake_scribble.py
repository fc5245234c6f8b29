"""Drawings made from photographs: HED's edges, thinned and drawn anew (``gradio_fake_scribble2image.py``)."""

from __future__ import annotations

import cv2
import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Hint, HintReport, Score
from controlnet.conditions.hed import Hed
from controlnet.conditions.lines import edge_score, read_lines
from controlnet.pictures import PictureSource


class FakeScribble(Hed):
    """Hints are uint8 ``[H, W]``, 255 on lines."""

    name = "fake_scribble"
    title = "Scribble from a picture"
    noun = "drawing"
    control_names = ("control_sd15_scribble", "control_v11p_sd15_scribble")

    def detect(self, picture: np.ndarray) -> Hint:
        return scribble_of(super().detect(picture))

    def hint(
        self,
        picture: np.ndarray,
        image_resolution: int,
        detect_resolution: int | None = None,
        **options: float,
    ) -> Hint:
        """As in `Condition.hint`; edges are resized before they are thinned."""
        edges = Hed(self.detector).hint(picture, image_resolution, detect_resolution)
        return scribble_of(edges)

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        return read_lines(source, self.noun)

    def show(self, hint: Hint) -> np.ndarray:
        return 255 - HWC3(hint)

    def score(self, hint: Hint, found: Hint) -> Score:
        return edge_score(hint, found)


def scribble_of(edges: np.ndarray) -> np.ndarray:
    """Soft edges uint8 ``[H, W]`` -> lines of even width, uint8 ``[H, W]`` of 0 and 255."""
    from annotator.hed import nms

    thin = nms(edges, 127, 3.0)
    smooth = cv2.GaussianBlur(thin, (0, 0), 3.0)
    return np.where(smooth > 4, 255, 0).astype(np.uint8)


CONDITION = FakeScribble
