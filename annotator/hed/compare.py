"""How well a small HED says what a large one says: the F-measure of their lines on pictures.

python -m annotator.hed.compare TEACHER STUDENT PICTURE_OR_FOLDER... [--resolution 512]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from annotator.hed import HEDdetector, nms
from annotator.util import resize_image

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png")
THRESHOLDS = range(24, 232, 8)
TOLERANCE = 2
"""Pixels between two lines that count as the same."""


class Agreement(NamedTuple):
    """The best threshold for the student's maps, and the F-measures with it."""

    threshold: int
    f_measure: float
    """Of the lines of all pictures together."""
    of_each: list[float]


def agreement(teacher_maps: Sequence[np.ndarray], student_maps: Sequence[np.ndarray]) -> Agreement:
    """Compare thinned maps: the teacher's at 127, the student's at the one threshold that is best for all.

    Precision is the share of the student's line pixels with one of the teacher's within two pixels, recall
    the share of the teacher's with one of the student's.

    Args:
        teacher_maps, student_maps: uint8 ``[H, W]`` each, as ``HEDdetector`` gives; in the same order.
    """
    wanted = [nms(edges, 127, 1.0) > 0 for edges in teacher_maps]
    best = Agreement(0, -1.0, [])
    for threshold in THRESHOLDS:
        found = [nms(edges, threshold, 1.0) > 0 for edges in student_maps]
        counts = np.array([_counts(*pair) for pair in zip(found, wanted, strict=True)])
        total = _f_measure(counts.sum(axis=0))
        if total > best.f_measure:
            best = Agreement(threshold, total, [_f_measure(row) for row in counts])
    return best


def _counts(found: np.ndarray, wanted: np.ndarray) -> tuple[int, int, int, int]:
    """Pixels found, of these right ones; pixels wanted, of these seen ones."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * TOLERANCE + 1, 2 * TOLERANCE + 1))
    near_wanted, near_found = (cv2.dilate(lines.astype(np.uint8), disc) > 0 for lines in (wanted, found))
    return found.sum(), (found & near_wanted).sum(), wanted.sum(), (wanted & near_found).sum()


def _f_measure(counts: np.ndarray) -> float:
    found, right, wanted, seen = counts.tolist()
    precision, recall = right / max(1, found), seen / max(1, wanted)
    return 2 * precision * recall / max(1e-9, precision + recall)


def pictures_in(places: Iterable[Path]) -> list[Path]:
    """The pictures of folders (not of those inside), sorted by name, and those named themselves.

    Raises:
        ValueError: a place that does not exist, or a folder without a JPEG or PNG.
    """
    found: list[Path] = []
    for place in places:
        inside = [place] if place.is_file() else sorted(place.glob("*"))
        inside = [path for path in inside if path.suffix.lower() in SUFFIXES]
        if not inside:
            raise ValueError(f"{place}: there is no picture ({', '.join(SUFFIXES)})")
        found += inside
    return found


def read_rgb(path: Path, resolution: int) -> np.ndarray:
    """A picture as uint8 RGB ``[H, W, 3]``, its short side near ``resolution``, both sides multiples of 64.

    Raises:
        ValueError: the file cannot be read.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise ValueError(f"{path}: cannot be read as a picture")
    return resize_image(picture, resolution)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m annotator.hed.compare``."""
    parser = argparse.ArgumentParser(prog="python -m annotator.hed.compare", description=__doc__)
    parser.add_argument("teacher", type=Path, help="weights of the large network")
    parser.add_argument("student", type=Path, help="weights of the small one")
    parser.add_argument("pictures", type=Path, nargs="+", help="files, or folders of files")
    parser.add_argument("--resolution", type=int, default=512, help="short side of the pictures")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        paths = pictures_in(options.pictures)
        pictures = [read_rgb(path, options.resolution) for path in paths]
        detectors = [HEDdetector(options.teacher), HEDdetector(options.student)]
        teacher_maps, student_maps = ([detector(picture) for picture in pictures] for detector in detectors)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    result = agreement(teacher_maps, student_maps)
    for path, value in zip(paths, result.of_each, strict=True):
        logger.info("%.3f %s", value, path.name)
    logger.info("F-measure %.3f at threshold %d, %d pictures", result.f_measure, result.threshold, len(paths))


if __name__ == "__main__":
    main()
