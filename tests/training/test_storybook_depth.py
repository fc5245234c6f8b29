"""The depth plane of a scene: exact, and nothing else of the scene has changed for it."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.layout import compose
from controlnet.storybook.scenes.looks import Look, random_look

GROUND = (Label.GRASS, Label.SAND, Label.EARTH, Label.FIELD, Label.ROAD, Label.PATH, Label.SEA, Label.LAKE)


@pytest.mark.parametrize(
    ("seed", "labels", "color"),
    [
        (0, 3403453793, (67.83, 71.04, 86.22)),
        (2, 2220642629, (58.01, 69.42, 89.64)),
        (4, 4180471097, (64.28, 70.50, 94.32)),
        (17, 3125226211, (191.21, 147.33, 117.97)),
        (1_000_000_007, 4013296491, (53.71, 68.54, 83.31)),
    ],
)
def test_pictures_and_maps_are_those_that_the_model_learned_from(
    seed: int, labels: int, color: tuple[float, float, float]
):
    """Maps to the byte; of pictures the mean, since OpenCV rounds differently from processor to processor."""
    scene = draw_scene(seed, 128)
    assert zlib.crc32(scene.labels.tobytes()) == labels
    np.testing.assert_allclose(scene.picture.mean(axis=(0, 1)), color, atol=0.02)


def test_depth_is_0_in_the_sky_and_grows_with_the_row_on_the_ground():
    for seed in range(10):
        scene = draw_scene(seed, 96)
        assert (scene.depth.dtype, scene.depth.shape) == (np.float32, (96, 96))
        np.testing.assert_array_equal(scene.depth == 0, scene.labels == Label.SKY)
        assert scene.depth.max() <= 1
        ground = np.isin(scene.labels, GROUND)
        rows = [np.unique(scene.depth[row][ground[row]]) for row in range(96) if ground[row].any()]
        assert all(len(values) == 1 for values in rows), "one row of the ground is one distance"
        levels = np.concatenate(rows)
        assert (np.diff(levels) > 0).all()
        assert levels[0] > scene.depth[scene.labels == Label.MOUNTAIN].max(initial=0)
        assert levels[-1] == pytest.approx(1, abs=0.02)


def test_a_thing_is_as_near_as_the_ground_at_its_foot():
    looked_at = 0
    for seed in range(20):
        scene = draw_scene(seed, 256)
        for thing in compose(np.random.default_rng((seed, 0)))[1]:
            row, column = round(thing.y * 256) + 2, round(thing.x * 256)
            if not len(thing.outline) and row < 256 and scene.labels[row, column] in GROUND:
                assert thing.nearness == (pytest.approx(scene.depth[row, column], abs=0.02), 0.0)
                assert np.isclose(scene.depth, thing.nearness[0], atol=1e-6).any()
                looked_at += 1
    assert looked_at > 50


def test_no_look_changes_the_depth():
    rng = np.random.default_rng(0)
    for seed in range(5):
        plain = draw_scene(seed, 96, look=Look())
        assert np.array_equal(plain.depth, draw_scene(seed, 96, look=random_look(rng)).depth)
