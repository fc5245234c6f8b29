"""How well a picture keeps to the map it was made from: the detector's map of the result against the map
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from annotator.ade20k import CLASSES, PALETTE, color_codes
from controlnet.conditions.base import Score

# Classes of one colour are one class to the network, which only ever sees colours.
_SAME_COLOR = np.unique(color_codes(PALETTE), return_index=True, return_inverse=True)
_CANONICAL = _SAME_COLOR[1][_SAME_COLOR[2]].astype(np.uint8)


@dataclass(frozen=True)
class ClassScore:
    """One class: its share of the map in [0, 1], and the intersection over union in [0, 1]."""

    name: str
    share: float
    iou: float


SPECK = 0.01
"""What covers a smaller share of a map is one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MapScore(Score):
    """Agreement of a picture with its map; ``value`` is the mean IoU over the classes that occur in either
    map.

    ``pixel_accuracy`` is the share of pixels whose class is the one asked for, in [0, 1]. ``classes`` are
    those of the map asked for, worst first. ``found`` is what the detector saw, uint8 ``[H, W]``.
    """

    pixel_accuracy: float
    classes: tuple[ClassScore, ...]
    found: np.ndarray

    @property
    def miou(self) -> float:
        """Mean intersection over union, in [0, 1]."""
        return self.value


def measure_adherence(wanted: np.ndarray, found: np.ndarray) -> MapScore:
    """Compare two label maps of one size.

    Args:
        wanted: uint8 ``[H, W]``, the class indices asked for.
        found: uint8 ``[H, W]``, the detector's indices of the result.

    Returns:
        ``value`` over all classes, ``agreement`` without those that are specks in both maps: a few pixels
        count as much as the sky otherwise, and say little of the layout.

    Raises:
        ValueError: maps of different shapes.
    """
    if wanted.shape != found.shape:
        raise ValueError(
            f"The maps differ in shape: {list(wanted.shape)} asked for, {list(found.shape)} found."
        )
    count = len(CLASSES)
    asked, seen = _CANONICAL[wanted].astype(np.int64), _CANONICAL[found].astype(np.int64)
    confusion = np.bincount((asked * count + seen).ravel(), minlength=count * count).reshape(count, count)
    hits = confusion.diagonal()
    rows, columns = confusion.sum(axis=1), confusion.sum(axis=0)
    union = rows + columns - hits
    iou = np.divide(hits, union, out=np.zeros(count), where=union > 0)
    large = np.maximum(rows, columns) >= min(SPECK * wanted.size, rows.max())
    agreement = float(iou[large].mean())
    asked_for = sorted(np.flatnonzero(rows), key=lambda index: (iou[index], -rows[index]))
    miou, accuracy = float(iou[union > 0].mean()), float(hits.sum() / wanted.size)
    classes = tuple(ClassScore(CLASSES[i], float(rows[i] / wanted.size), float(iou[i])) for i in asked_for)
    worst = [{"class": c.name, "share": round(c.share, 4), "iou": round(c.iou, 4)} for c in classes[:3]]
    return MapScore(
        measure="mIoU",
        value=miou,
        agreement=agreement,
        remark="" if round(agreement, 2) == round(miou, 2) else f"{agreement:.2f} without specks",
        details={"pixel_accuracy": round(accuracy, 4), "worst": worst},
        departs=asked != seen,
        pixel_accuracy=accuracy,
        classes=classes,
        found=found,
    )
