"""Segmentation: a map of ADE20K's 150 classes (the original's ``gradio_seg2image.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from annotator.ade20k import CLASSES, colorize
from controlnet.conditions.base import Condition, ConditionError, Hint, HintReport
from controlnet.conditions.seg.adherence import MapScore, measure_adherence
from controlnet.conditions.seg.validator import validate_map
from controlnet.pictures import PictureError, PictureSource


class Seg(Condition):
    """Hints are uint8 ``[H, W]``, class indices in [0, 149]; the network sees the palette's colours."""

    name = "seg"
    title = "Segmentation"
    noun = "segmentation map"
    folders = ("colors", "labels")
    is_measured = True
    detect_label = "Segmentation resolution"
    interpolation = cv2.INTER_NEAREST
    editor = "label_map"
    nothing_found = "The map is one class only: it steers nothing but that."

    def make_detector(self) -> Any:
        from annotator.uniformer import UniformerDetector

        return UniformerDetector(self.weights, device=self.device)

    def detect(self, picture: np.ndarray) -> Hint:
        return self.detector.labels(picture)

    def detect_all(self, pictures: Sequence[np.ndarray], **options: float) -> list[Hint]:
        return self.detector.labels_of(pictures)

    def files(self, hint: Hint) -> dict[str, np.ndarray]:
        """Colours, by the palette of the detector's own data set, and indices."""
        return {"colors": colorize(hint, self.detector.palette), "labels": hint}

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        """A map in colours or indices, repaired; see ``controlnet.conditions.seg.validator``."""
        try:
            report = validate_map(source)
        except PictureError:
            raise
        except ValueError as error:
            raise ConditionError(str(error)) from error
        shares = tuple((found.name, found.pixels / report.labels.size) for found in report.classes)
        return HintReport(report.labels, report.kind, report.warnings, report.touched, shares)

    @classmethod
    def check(cls, hint: Any) -> Hint:
        hint = super().check(hint)
        if hint.max() >= len(CLASSES):
            raise ConditionError(
                f"A hint of seg holds class indices from 0 to {len(CLASSES) - 1}, got {int(hint.max())}."
            )
        return hint

    def control(self, hint: Hint) -> np.ndarray:
        return colorize(hint)

    def is_empty(self, hint: Hint) -> bool:
        return bool((hint == hint.flat[0]).all())

    def score(self, hint: Hint, found: Hint) -> MapScore:
        return measure_adherence(hint, found)


CONDITION = Seg
