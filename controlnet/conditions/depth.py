"""Depth by MiDaS (the original's ``gradio_depth2image.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Condition, Hint, HintReport, Score
from controlnet.pictures import PictureSource, decode

_COLORED = 32  # difference of a pixel's channels from which on it is coloured


class Depth(Condition):
    """Hints are uint8 ``[H, W]``, near is bright."""

    name = "depth"
    title = "Depth"
    noun = "depth map"
    is_measured = True
    detect_resolution = 384
    detect_label = "Depth resolution"
    control_names = ("control_sd15_depth", "control_v11f1p_sd15_depth")
    nothing_found = "The depth is the same everywhere: the hint is empty and steers nothing."

    def make_detector(self) -> Any:
        from annotator.midas import MidasDetector

        return MidasDetector(self.weights, device=self.device)

    def detect(self, picture: np.ndarray) -> Hint:
        return self.detector(picture)[0]

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        """A depth map of 8 or 16 bits; 16 bits are stretched to the whole range of 8."""
        if isinstance(source, np.ndarray):
            return self._read_array(source, [])
        picture = decode(source)
        if picture.mode.startswith("I;16") or picture.mode == "I":
            return self._read_array(np.asarray(picture.pixels), [])
        return self._read_array(picture.rgb(), [])

    def _read_array(self, values: np.ndarray, warnings: list[str]) -> HintReport:
        if values.dtype != np.uint8:
            depth = values.astype(np.float64)
            low, high = float(depth.min()), float(depth.max())
            hint = ((depth - low) / max(high - low, 1.0) * 255).astype(np.uint8)
            warnings.append(
                f"Values from {low:g} to {high:g} were stretched to 0 to 255. Near must be bright: if the "
                "file holds "
                "distances, near is dark, and the map must be inverted."
            )
            return HintReport(hint, "depth map of 16 bits", tuple(warnings))
        colors = HWC3(values)
        if (colors.max(axis=2).astype(np.int16) - colors.min(axis=2) > _COLORED).mean() > 0.02:
            warnings.append("The depth map is coloured, and only its brightness counts: give it in greys.")
        return HintReport(colors.max(axis=2), self.noun, tuple(warnings))

    def score(self, hint: Hint, found: Hint) -> Score:
        """Mean absolute difference, in shares of the whole range, after the best scale and shift of
        what was found.
        """
        asked, seen = hint.astype(np.float64) / 255, found.astype(np.float64) / 255
        spread = seen.var()
        scale = max(0.0, ((seen - seen.mean()) * (asked - asked.mean())).mean() / spread) if spread else 0.0
        error = np.abs(asked - asked.mean() - scale * (seen - seen.mean()))
        value = float(error.mean())
        return Score("depth error", value, max(0.0, 1 - 4 * value), {}, error > 0.15)


CONDITION = Depth
