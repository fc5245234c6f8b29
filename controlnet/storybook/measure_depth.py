"""How well a depth network sees drawn scenes that no training has: their depth, and the normals made of it.

python -m controlnet.storybook.measure_depth [--weights FILE] [--scenes 64] [--size 256]
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import numpy as np
import torch

from annotator.midas import MidasDetector, normal_picture
from controlnet.conditions.normal import Normal
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.hints import DEPTH_RANGE
from controlnet.storybook.train_depth import aligned_error

logger = logging.getLogger(__name__)

FIRST_SEED = 1_000_000_000
"""Scenes from here on are of evaluation alone."""

BACKGROUND = 0.4
"""Share of the depth's range below which normals face the viewer: the page's default."""


def measure_depth(detector: MidasDetector, scenes: int = 64, size: int = 256) -> dict[str, float]:
    """Means over the scenes.

    Args:
        detector: its depth is measured.
        scenes: how many, from ``FIRST_SEED`` on.
        size: side of their pictures, in pixels.

    Returns:
        ``depth_error``, the mean absolute error in shares of the depth's range, after each prediction's best
        scale and shift; ``ramp_error``, the same of a ramp from top to bottom, which knows nothing of the
        picture; ``normal_angle``, the mean angle between the normals of found and true depth, in degrees;
        ``flat_angle``, the same of a map where everything faces the viewer.
    """
    normal = Normal()
    ramp = np.repeat(np.linspace(0, 1, size, dtype=np.float32)[:, None], size, axis=1)
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        scene = draw_scene(seed, size)
        found = detector.depth(scene.picture)
        wanted = normal_picture(scene.depth * DEPTH_RANGE, bg_th=BACKGROUND)
        seen = normal_picture(found, bg_th=BACKGROUND)
        angles = [normal.score(wanted, other).value for other in (seen, np.full_like(seen, (127, 127, 255)))]
        rows.append([_error(found, scene.depth), _error(ramp, scene.depth), *angles])
    names = ("depth_error", "ramp_error", "normal_angle", "flat_angle")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


def _error(found: np.ndarray, depth: np.ndarray) -> float:
    return float(aligned_error(torch.from_numpy(found)[None], torch.from_numpy(depth)[None]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.measure_depth``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="by default those that the depth condition takes")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, in pixels")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, value in measure_depth(MidasDetector(options.weights), options.scenes, options.size).items():
        logger.info("%-13s %.4f", name, value)


if __name__ == "__main__":
    main()
