"""Drawings of a few shapes: what they may show, and that picture and map say the same."""

from __future__ import annotations

import numpy as np
import pytest

from controlnet.storybook import train_detector
from controlnet.storybook.drawings import GROUNDS, THINGS, Pens, draw
from controlnet.storybook.scenes.canvas import Canvas
from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.train_detector import DetectorScenes


def drawn(seed: int, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    return draw(np.random.default_rng(seed), size)


def test_a_drawing_follows_from_its_chance_and_looks_the_same_at_any_size():
    picture, labels = drawn(3)
    assert picture.shape == (96, 96, 3) and picture.dtype == labels.dtype == np.uint8
    again = drawn(3)
    assert np.array_equal(picture, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(picture, drawn(4)[0])
    large = drawn(3, 192)
    assert (large[1][::2, ::2] == labels).mean() > 0.95


def test_every_class_of_the_world_is_drawn():
    maps = np.stack([drawn(seed, 64)[1] for seed in range(400)])
    shares = {label: float((maps == label).any(axis=(1, 2)).mean()) for label in Label}
    assert min(shares.values()) > 0.02, shares
    assert set(np.unique(maps)) == set(Label)


@pytest.mark.parametrize("thing", sorted(set(THINGS), key=lambda thing: thing.__name__))
def test_a_thing_is_one_class_where_it_is_seen_and_nothing_else(thing):
    marked = set()
    for seed in range(12):
        canvas = Canvas(128)
        canvas.fill(np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), (1, 2, 3), Label.SKY)
        thing(Pens(canvas, np.random.default_rng(seed)), (0.5, 0.8, 0.2, 0.5))
        painted, labels = (canvas.picture != (1, 2, 3)).any(axis=2), canvas.labels
        marked |= set(np.unique(labels)) - {Label.SKY}
        differ = painted != (labels != Label.SKY)
        assert 0.005 < painted.mean() < 0.6
        assert differ.mean() < 0.25 * painted.mean() + 0.01, "but for soft edges"
    assert len(marked) == 1 and marked.isdisjoint(GROUNDS)


def test_colours_are_plain_and_outlines_come_and_go():
    largest = []
    for seed in range(40):
        picture, labels = drawn(seed)
        _, counts = np.unique(picture[labels == Label.SKY], axis=0, return_counts=True)
        largest.append(counts.max() / counts.sum())
    assert np.median(largest) > 0.8, "the sky is of one colour, but for sun, clouds and soft edges"
    outlined = [Pens(Canvas(8), np.random.default_rng(seed)).outline > 0 for seed in range(200)]
    assert 40 < sum(outlined) < 100


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 4, 22), (1.0, 40, 40)])
def test_a_share_of_what_the_detector_learns_from_is_drawn(monkeypatch, share, least, most):
    calls = []
    monkeypatch.setattr(train_detector, "draw", lambda rng, size: calls.append(size) or draw(rng, size))
    scenes = DetectorScenes(0, 40, 64, points=5, drawings=share)
    assert all(scenes[index]["picture"].shape == (3, 64, 64) for index in range(40))
    assert least <= len(calls) <= most and set(calls) <= {64}
    DetectorScenes(0, 4, 64, points=None, drawings=share)[0]
    assert least <= len(calls) <= most, "none for validation"
    with pytest.raises(ValueError, match="drawings is 25; a share between 0 and 1 is wanted"):
        DetectorScenes(0, 4, 64, points=5, drawings=25)
