"""How well a detector sees scenes, scenes in plain colours and drawings of a few shapes that no training has.

python -m controlnet.storybook.measure_detector [--weights FILE] [--config FILE] [--count 64] [--size 256]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from annotator.uniformer import SegmentationDetector
from controlnet.evaluate.scores import MeanIoU
from controlnet.files import find_file
from controlnet.storybook.dataset import HELD_OUT_SEED, draw_scene
from controlnet.storybook.drawings import draw
from controlnet.storybook.scene_items import flatten

logger = logging.getLogger(__name__)

Item = tuple[np.ndarray, np.ndarray]
"""A picture, uint8 RGB ``[H, W, 3]``, and its map, uint8 ``[H, W]``."""


def held_out(kind: str, count: int, size: int) -> Iterator[Item]:
    """Pictures of a kind, ``scenes``, ``plain`` or ``drawings``, ``size`` pixels a side."""
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count):
        rng = np.random.default_rng(seed)
        if kind == "drawings":
            yield draw(rng, size)
            continue
        scene = draw_scene(seed, size)
        yield flatten(scene.picture, scene.labels, rng) if kind == "plain" else (scene.picture, scene.labels)


def measure_detector(detector: SegmentationDetector, count: int = 64, size: int = 256) -> dict[str, float]:
    """Scores of a detector on pictures that it has not seen.

    Args:
        detector: knows ADE20K's classes.
        count: pictures of each kind.
        size: their side in pixels.

    Returns:
        mIoU in [0, 1] over the classes that occur, by kind: ``scenes``, ``plain`` and ``drawings``.
    """
    scores = {}
    for kind in ("scenes", "plain", "drawings"):
        score = MeanIoU()
        for picture, labels in held_out(kind, count, size):
            score.update(detector.labels(picture), labels)
        scores[kind] = float(score.compute())
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.measure_detector``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=find_file("annotator/ckpts/upernet_tiny.safetensors"))
    parser.add_argument("--config", type=Path, default=find_file("configs/annotator/upernet_tiny.py"))
    parser.add_argument("--count", type=int, default=64, help="pictures of each kind")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, in pixels")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    detector = SegmentationDetector(options.weights, options.config)
    for kind, score in measure_detector(detector, options.count, options.size).items():
        logger.info("%-8s %.3f", kind, score)


if __name__ == "__main__":
    main()
