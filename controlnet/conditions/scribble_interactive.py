"""Drawings made on the page's own board (the original's ``gradio_scribble2image_interactive.py``)."""

from __future__ import annotations

import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Hint
from controlnet.conditions.scribble import Scribble


class ScribbleInteractive(Scribble):
    """Hints are uint8 ``[H, W]``, 255 on lines. The picture is a mask: what was drawn is bright in it."""

    name = "scribble_interactive"
    title = "Draw it yourself"
    options = ()
    nothing_found = "Nothing is drawn yet: the hint is empty and steers nothing."

    def detect(self, picture: np.ndarray) -> Hint:
        """uint8 RGB ``[H, W, 3]`` -> uint8 ``[H, W]``."""
        return np.where(picture[:, :, 0] > 127, 255, 0).astype(np.uint8)

    def hint(
        self,
        picture: np.ndarray,
        image_resolution: int,
        detect_resolution: int | None = None,
        **options: float,
    ) -> Hint:
        """As in `Condition.hint`; further channels of a mask, alpha among them, do not count."""
        mask = picture if picture.ndim == 2 else picture[:, :, 0]
        return super().hint(HWC3(np.ascontiguousarray(mask)), image_resolution)


CONDITION = ScribbleInteractive
