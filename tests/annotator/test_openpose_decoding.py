"""From maps to people: the same as the slow way, and each shortcut the same as the whole."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from annotator.openpose.decoding import Connection, assemble, connect, decode, limb_scores
from annotator.openpose.maps import Enlarging, network_input, warm_window
from annotator.openpose.people import LIMBS
from benchmarks.original_way.openpose import decode_as_the_original, made_up_maps


def enlarging_of(height: int, width: int) -> tuple[Enlarging, tuple[int, int]]:
    """What enlarges the maps of a picture, and the maps' size."""
    x, enlarging = network_input(np.zeros((height, width, 3), np.uint8), 184)
    return enlarging, (x.shape[2] // 8, x.shape[3] // 8)


@pytest.mark.parametrize(
    ("people", "size"), [(1, (200, 150)), (3, (256, 256)), (8, (300, 420)), (15, (123, 367))], ids=str
)
def test_people_are_those_of_the_slow_way(
    people: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("annotator.openpose.decoding._PAIRS_AT_ONCE", 20)
    enlarging, (rows, columns) = enlarging_of(*size)
    maps = made_up_maps(people, rows, columns, seed=people)
    candidate, subset = decode(*maps, enlarging)
    slow_candidate, slow_subset = decode_as_the_original(*maps, enlarging)
    assert len(subset) >= min(people, 3)
    np.testing.assert_allclose(candidate, slow_candidate, rtol=0, atol=1e-6)
    np.testing.assert_allclose(subset, slow_subset, rtol=0, atol=1e-5)


def test_maps_of_noise_give_what_the_slow_way_gives():
    """Hundreds of joints and chance limbs, as of a network that knows nothing."""
    enlarging, (rows, columns) = enlarging_of(64, 64)
    random = np.random.default_rng(0)
    fields = random.normal(0.3, 0.3, (38, rows, columns)).astype(np.float32)
    heat = random.normal(0.1, 0.3, (19, rows, columns)).astype(np.float32)
    candidate, subset = decode(fields, heat, enlarging)
    slow_candidate, slow_subset = decode_as_the_original(fields, heat, enlarging)
    assert len(candidate) > 100
    assert len(subset) > 2
    np.testing.assert_allclose(candidate, slow_candidate, rtol=0, atol=1e-6)
    np.testing.assert_allclose(subset, slow_subset, rtol=0, atol=1e-5)


def test_the_network_sees_the_picture_at_184_rows_and_zeros_on_its_padding():
    x, enlarging = network_input(np.full((100, 91, 3), 255, np.uint8), 184)
    assert x.shape == (1, 3, 184, 168)
    assert enlarging.used == (184, 167)
    assert (x[..., :167] == 255 / 256 - 0.5).all()
    assert (x[..., 167:] == 0).all()


def test_a_window_of_enlarged_maps_is_that_part_of_the_whole():
    enlarging, (rows, columns) = enlarging_of(150, 333)
    maps = np.random.default_rng(0).random((3, rows, columns), dtype=np.float32)
    whole = np.stack(list(enlarging.each(maps)))
    assert whole.shape == (3, 150, 333)
    np.testing.assert_allclose(enlarging.window(maps, slice(None), slice(None)), whole, atol=2e-6)
    window = enlarging.window(maps, slice(20, 90), slice(300, 333))
    np.testing.assert_allclose(window, whole[:, 20:90, 300:], atol=2e-6)


@pytest.mark.parametrize("spot", [(50, 70, 3), (0, 0, 2), (98, 139, 1), (4, 60, 30)])
def test_the_warm_window_holds_all_that_is_warm_and_its_neighbors(spot: tuple[int, int, int]):
    y, x, side = spot
    heat = 0.09 * np.random.default_rng(0).random((100, 140), dtype=np.float32)
    heat[y : y + side, x : x + side] = 30
    whole = cv2.GaussianBlur(heat.astype(np.float64), (25, 25), 3, borderType=cv2.BORDER_REFLECT)
    window = warm_window(heat, 0.1)
    rows, columns = window.blurred.shape
    assert rows * columns < heat.size
    warm = whole > 0.1
    inside = np.zeros_like(warm)
    inside[window.top : window.top + rows, window.left : window.left + columns] = window.blurred > 0.1
    np.testing.assert_array_equal(inside, warm)
    near = (
        cv2.dilate(warm.astype(np.uint8), np.ones((3, 3)))[window.top :, window.left :][:rows, :columns] > 0
    )
    part = whole[window.top :, window.left :][:rows, :columns]
    np.testing.assert_allclose(window.blurred[near], part[near], rtol=1e-12)


def test_nothing_warm_has_no_window():
    assert warm_window(np.full((9, 9), 0.1), 0.1) is None


def test_a_limb_wants_a_field_along_it():
    enlarging, (rows, columns) = enlarging_of(184, 184)
    along_x = np.stack([np.ones((rows, columns)), np.zeros((rows, columns))])
    starts = np.array([[40.0, 60.0]])
    ends = np.array([[90.0, 60.0], [10.0, 60.0], [40.0, 110.0], [80.0, 90.0], [40.0, 60.0], [179.0, 60.0]])
    right, left, down, slanting, nowhere, long = limb_scores(along_x, starts, ends, enlarging)[0]
    assert right == pytest.approx(1)
    assert slanting == pytest.approx(0.8)
    assert long == pytest.approx(0.5 * 184 / 139), "longer than half the height"
    assert np.isnan([left, down, nowhere]).all()


def test_each_joint_is_in_one_limb_of_a_kind_the_best_first():
    enlarging, (rows, columns) = enlarging_of(184, 184)
    along_x = np.stack([np.ones((rows, columns)), np.zeros((rows, columns))])
    starts = np.array([[20, 60, 0.9, 0], [20, 100, 0.9, 1]], np.float64)
    ends = np.array([[80, 62, 0.9, 2], [80, 80, 0.9, 3]], np.float64)
    limbs = connect(along_x, starts, ends, enlarging)
    assert [limb[:2] for limb in limbs] == [(0, 2), (1, 3)]
    assert connect(along_x, starts[:0], ends, enlarging) == []
    assert connect(along_x, starts, ends[:0], enlarging) == []


def test_a_joint_in_three_people_is_no_error():
    """The original has room for two who share a joint, and would raise IndexError on a third."""
    candidate = np.column_stack([np.zeros((13, 2)), np.full(13, 0.9), np.arange(13)])
    connections: list[list[Connection]] = [[] for _ in LIMBS]
    for kind, (start, end) in {0: (0, 1), 2: (1, 2), 3: (2, 3)}.items():  # from the neck to the right wrist
        connections[kind] = [Connection(start + first, end + first, 1.0) for first in (0, 4, 8)]
    connections[17] = [Connection(shoulder, 12, 1.0) for shoulder in (9, 5, 1)]  # three shoulders, one ear
    subset = assemble(candidate, connections)
    assert len(subset) == 3
    np.testing.assert_array_equal(subset[:, 1:5], np.arange(12).reshape(3, 4))
    assert 12 in subset[:, 16]


def test_two_halves_of_a_person_are_joined_by_a_limb():
    candidate = np.column_stack([np.zeros((6, 2)), np.full(6, 0.5), np.arange(6)])
    connections: list[list[Connection]] = [[] for _ in LIMBS]
    connections[2] = [Connection(0, 1, 1.0)]  # right shoulder and elbow
    connections[3] = [Connection(1, 2, 1.0)]  # and wrist
    connections[13] = [Connection(3, 4, 1.0)]  # nose and right eye: somebody else so far
    connections[14] = [Connection(4, 5, 1.0)]  # and ear
    assert len(assemble(candidate, connections)) == 0, "three joints are nobody"
    connections[17] = [Connection(0, 5, 0.25)]  # right shoulder and ear
    (person,) = assemble(candidate, connections)
    found = {part: number for part, number in enumerate(person[:18].tolist()) if number >= 0}
    assert found == {0: 3, 2: 0, 3: 1, 4: 2, 14: 4, 16: 5}
    assert person[18] == pytest.approx(6 * 0.5 + 4 * 1.0 + 0.25)
    assert person[19] == 6


def test_a_shoulder_and_an_ear_alone_begin_no_person():
    candidate = np.column_stack([np.zeros((4, 2)), np.full(4, 0.5), np.arange(4)])
    connections: list[list[Connection]] = [[] for _ in LIMBS]
    connections[17] = [Connection(0, ear, 1.0) for ear in (1, 2, 3)]
    assert len(assemble(candidate, connections)) == 0
    connections[0], connections[17] = connections[17], []
    assert len(assemble(candidate, connections)) == 1, "as a neck and a shoulder would"
