"""What is said of a detector: the truth is perfect, the sky alone is not, and what ships reads drawings."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from controlnet.storybook.dataset import HELD_OUT_SEED, draw_scene
from controlnet.storybook.measure_detector import held_out, main, measure_detector
from controlnet.storybook.scenes.labels import Label

KINDS = ("scenes", "plain", "drawings")


class Knows:
    """Gives each picture's own map, in the order in which they are asked for, or sky."""

    def __init__(self, count: int, size: int):
        self.maps = [labels for kind in KINDS for _, labels in held_out(kind, count, size)]

    def labels(self, picture: np.ndarray) -> np.ndarray:
        return self.maps.pop(0)


class SeesSky:
    def labels(self, picture: np.ndarray) -> np.ndarray:
        return np.full(picture.shape[:2], Label.SKY, np.uint8)


def test_truth_is_perfect_and_the_sky_alone_is_not():
    assert measure_detector(Knows(3, 64), 3, 64) == dict.fromkeys(KINDS, 1.0)
    assert all(0 < score < 0.2 for score in measure_detector(SeesSky(), 3, 64).values())


def test_pictures_are_those_that_no_training_has_and_of_three_kinds():
    scene = draw_scene(HELD_OUT_SEED, 64)
    pictures = {kind: next(held_out(kind, 1, 64)) for kind in KINDS}
    np.testing.assert_array_equal(pictures["scenes"][0], scene.picture)
    np.testing.assert_array_equal(pictures["scenes"][1], scene.labels)
    assert (pictures["plain"][1] == scene.labels).mean() > 0.6
    assert (pictures["drawings"][1] == scene.labels).mean() < 0.9


def test_the_detector_that_ships_reads_all_three(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        main(["--count", "6"])
    scores = {line.split()[0]: float(line.split()[1]) for line in caplog.messages if line.startswith(KINDS)}
    assert list(scores) == list(KINDS)
    assert scores["scenes"] > 0.75 and scores["plain"] > 0.6 and scores["drawings"] > 0.55
