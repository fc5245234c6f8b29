"""What the conditions made of lines share: reading line pictures that people bring, and comparing two
of them.
"""

from __future__ import annotations

import cv2
import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Hint, HintReport, Score
from controlnet.pictures import PictureSource, read_picture

TOLERANCE = 2
"""Lines that lie within this many pixels of each other are the same line."""

_COLORED = 32  # difference of a pixel's channels from which on it is coloured
_MANY = 0.1  # share of the bright pixels from which on colour is no accident


def read_lines(source: PictureSource | np.ndarray, noun: str, soft: bool = False) -> HintReport:
    """A picture of lines, as white lines on black.

    Dark lines on a bright ground are inverted: of a picture of lines most is ground. Unless ``soft``, every
    pixel becomes 0 or 255, which takes away what JPEG and smooth scaling left beside the lines.

    Args:
        source: a file, or uint8 ``[H, W]`` or ``[H, W, 3]`` RGB.
        noun: what is read, for the report.
        soft: whether greys between mean something, as in HED's maps.
    """
    picture = HWC3(source if isinstance(source, np.ndarray) else read_picture(source))
    warnings = []
    spread = picture.max(axis=2).astype(np.int16) - picture.min(axis=2)
    if (spread > _COLORED).sum() > _MANY * max(1, int((picture.max(axis=2) > 127).sum())):
        warnings.append(f"The {noun} has colours; only its brightness counts.")
    grey = picture.max(axis=2)
    if np.median(grey) > 127:
        grey = 255 - picture.min(axis=2)
        warnings.append(
            "Dark lines on a bright ground were inverted: lines are white here, the ground black."
        )
    between = float(((grey > 32) & (grey < 224)).mean())
    if between > 0.25:
        warnings.append(
            f"{between:.0%} of the pixels are grey: is this {noun} a photograph? Detect it instead."
        )
    touched = 0
    if not soft:
        black_and_white = np.where(grey > 127, 255, 0).astype(np.uint8)
        touched = int((black_and_white != grey).sum())
        grey = black_and_white
    return HintReport(grey, noun, tuple(warnings), touched)


def edge_score(hint: Hint, found: Hint, threshold: int = 127) -> Score:
    """F-measure of two edge maps uint8 ``[H, W]``: edges within `TOLERANCE` pixels of each other agree.

    Precision is the share of found edges that were asked for, recall the share of edges asked for that were
    found (Martin, Fowlkes and Malik 2004, with a dilation in place of the matching).
    """
    asked, seen = hint > threshold, found > threshold
    precision = share_near(seen, asked)
    recall = share_near(asked, seen)
    total = precision + recall
    value = 2 * precision * recall / total if total else 0.0
    departs = near(asked, TOLERANCE) ^ near(seen, TOLERANCE)
    details = {"precision": round(precision, 4), "recall": round(recall, 4)}
    return Score("F-measure", value, value, details, departs)


def share_near(lines: np.ndarray, others: np.ndarray, tolerance: int = TOLERANCE) -> float:
    """The share of the pixels of ``lines`` with one of ``others`` near; 1 where there are none (both
    bool).
    """
    count = int(lines.sum())
    return float((lines & near(others, tolerance)).sum() / count) if count else float(not others.any())


def near(lines: np.ndarray, tolerance: int) -> np.ndarray:
    """bool ``[H, W]``: True within ``tolerance`` pixels of a line."""
    side = 2 * tolerance + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(lines.astype(np.uint8), disc).astype(bool)
