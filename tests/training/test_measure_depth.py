"""What is said of the depth network: nothing is wrong with the truth, and a ramp is no more than a ramp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotator.midas import MidasDetector
from annotator.util import annotator_ckpts_path
from controlnet.storybook import measure_depth as module
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.hints import DEPTH_RANGE


class Knows:
    """Gives each scene's own depth, bent by ``noise``, in the order in which scenes are asked for."""

    def __init__(self, noise: float = 0.0):
        self.noise, self.seed = noise, module.FIRST_SEED

    def depth(self, picture: np.ndarray) -> np.ndarray:
        scene = draw_scene(self.seed, len(picture))
        np.testing.assert_array_equal(scene.picture, picture)
        self.seed += 1
        rng = np.random.default_rng(0)
        return (DEPTH_RANGE * (scene.depth + self.noise * rng.standard_normal(scene.depth.shape))).astype(
            np.float32
        )


def test_truth_has_no_error_and_noise_has_its_own():
    truth = module.measure_depth(Knows(), scenes=2, size=64)
    assert truth["depth_error"] < 1e-6 and truth["normal_angle"] < 0.1
    assert truth["ramp_error"] > 0.01 and truth["flat_angle"] > 1
    noisy = module.measure_depth(Knows(0.02), scenes=2, size=64)
    assert noisy["depth_error"] == pytest.approx(0.016, rel=0.2)  # the mean of |N(0, 0.02)|
    assert noisy["normal_angle"] > truth["normal_angle"]
    assert noisy["ramp_error"] == truth["ramp_error"]


def test_the_network_that_ships_sees_more_than_a_ramp():
    shipped = Path(annotator_ckpts_path) / "depth_tiny.safetensors"
    assert shipped.stat().st_size <= 2_000_000
    measured = module.measure_depth(MidasDetector(shipped, "cpu"), scenes=6, size=192)
    assert measured["depth_error"] < 0.75 * measured["ramp_error"]
    assert measured["normal_angle"] < 0.75 * measured["flat_angle"]
