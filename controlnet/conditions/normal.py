"""Surface normals by MiDaS (the original's ``gradio_normal2image.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Condition, Hint, HintReport, Option, Score
from controlnet.pictures import PictureSource, read_picture

_FLAT = np.array([127, 127, 255], np.uint8)  # what faces the viewer, and all of the background


class Normal(Condition):
    """Hints are uint8 RGB ``[H, W, 3]``: x, y, z in [-1, 1] as 127.5 + 127.5 n, z towards the viewer.

    The released control was trained on maps whose channels stand the other way round; only `control` knows.
    """

    name = "normal"
    title = "Normal map"
    noun = "normal map"
    is_measured = True
    options = (
        Option("bg_threshold", "Normal background threshold", default=0.4, low=0.0, high=1.0, step=0.01),
    )  # fmt: skip
    detect_resolution = 384
    detect_label = "Normal resolution"
    control_names = ("control_sd15_normal",)
    hint_dimensions = 3
    nothing_found = (
        "Everything is flat or background: the normal map steers nothing. Lower the background threshold."
    )

    def make_detector(self) -> Any:
        from annotator.midas import MidasDetector

        return MidasDetector(self.weights, device=self.device)

    def detect(self, picture: np.ndarray, bg_threshold: float = 0.4) -> Hint:
        return self.detector(picture, bg_th=bg_threshold)[1]

    def control(self, hint: Hint) -> np.ndarray:
        return np.ascontiguousarray(hint[:, :, ::-1])

    def show(self, hint: Hint) -> np.ndarray:
        return hint

    def is_empty(self, hint: Hint) -> bool:
        return bool((np.abs(hint.astype(np.int16) - _FLAT) <= 1).all())

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        hint = HWC3(source if isinstance(source, np.ndarray) else read_picture(source))
        warnings = []
        red, _, blue = hint.reshape(-1, 3).mean(axis=0)
        if red > 160 and red > blue + 20:
            hint = np.ascontiguousarray(hint[:, :, ::-1])
            warnings.append("Red and blue were swapped: the axis towards the viewer belongs into blue.")
        lengths = np.linalg.norm(hint.astype(np.float32) / 127.5 - 1, axis=2)
        odd = float((np.abs(lengths - 1) > 0.2).mean())
        if odd > 0.1:
            warnings.append(f"{odd:.0%} of the pixels are no unit vectors: is this a normal map at all?")
        return HintReport(hint, self.noun, tuple(warnings))

    def score(self, hint: Hint, found: Hint) -> Score:
        """Mean angle between the normals, in degrees."""
        asked, seen = _unit(hint), _unit(found)
        angles = np.degrees(np.arccos((asked * seen).sum(axis=2).clip(-1, 1)))
        value = float(angles.mean())
        return Score("mean angle", value, max(0.0, 1 - value / 45), {"unit": "degrees"}, angles > 30)


def _unit(hint: Hint) -> np.ndarray:
    """float32 ``[H, W, 3]`` of length 1."""
    vectors = hint.astype(np.float32) / 127.5 - 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-6)


CONDITION = Normal
