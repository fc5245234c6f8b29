"""Drawing people, looking for hands, and how alike two poses are."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from annotator.openpose import KEYPOINT_NAMES, Joints, Keypoint, Person, draw_people
from annotator.openpose.people import people_of
from annotator.openpose.similarity import COCO_SIGMAS, object_keypoint_similarity
from annotator.openpose.util import (
    HAND_JOINT_COLOR,
    LIMB_COLORS,
    draw_bodypose,
    draw_handpose,
    hand_boxes,
)
from benchmarks.original_way.openpose import STANDING, draw_as_the_original

CANDIDATE = np.column_stack([STANDING * 200 + (100, 30), np.full(18, 0.9), np.arange(18)])
SUBSET = np.array([[*range(18), 30.6, 18]], np.float64)
PERSON = people_of(CANDIDATE, SUBSET)[0]


def moved(person: Person, dx: float = 0, dy: float = 0) -> Person:
    joints = tuple(joint and Keypoint(joint.x + dx, joint.y + dy) for joint in person.keypoints)
    return dataclasses.replace(person, keypoints=joints)


def only(person: Person, *names: str) -> Person:
    keypoints = tuple(person[name] if name in names else None for name in KEYPOINT_NAMES)
    return dataclasses.replace(person, keypoints=keypoints)


def hand_at(x: float, y: float) -> Joints:
    return tuple(Keypoint(x + 5 * (joint % 4), y + 3 * (joint // 4)) for joint in range(21))


def test_people_have_named_joints():
    assert PERSON["nose"] == pytest.approx((100, 50, 0.9))
    assert PERSON["left_ankle"] == pytest.approx((120, 218, 0.9))
    assert PERSON.score == pytest.approx(1.7)
    without_nose = SUBSET.copy()
    without_nose[0, 0] = -1
    assert people_of(CANDIDATE, without_nose)[0]["nose"] is None
    assert people_of(np.zeros(0), np.zeros((0, 20))) == [], "what the original gives where nobody is"


def test_skeletons_are_those_of_the_original():
    shifts = np.array([(0, 0, 0, 0), (31, -40, 0, 18), (-90, 77, 0, 36)])
    crowd = (CANDIDATE + shifts[:, None]).reshape(-1, 4)
    subset = np.repeat(SUBSET, 3, axis=0)
    subset[:, :18] += shifts[:, 3:]
    subset[1, [3, 8]] = -1
    expected = draw_as_the_original(crowd, subset, 210, 190)  # people leave it on three sides
    np.testing.assert_array_equal(draw_people(people_of(crowd, subset), 210, 190), expected)
    np.testing.assert_array_equal(draw_bodypose(np.zeros_like(expected), crowd, subset), expected)


def test_drawing_leaves_the_canvas_alone_and_what_is_far_from_limbs_as_it_was():
    canvas = np.random.default_rng(0).integers(0, 256, (256, 220, 3), dtype=np.uint8)
    before = canvas.copy()
    drawn = draw_bodypose(canvas, CANDIDATE, SUBSET)
    np.testing.assert_array_equal(canvas, before)
    np.testing.assert_array_equal(drawn[:, :40], before[:, :40])
    assert (drawn != before).any()
    draw_handpose(canvas, [np.full((21, 2), 50)])
    np.testing.assert_array_equal(canvas, before)


def test_joints_off_the_picture_or_at_coordinate_zero_are_drawn_as_far_as_they_are_seen():
    assert not draw_people([moved(PERSON, dx=5000)], 64, 64).any()
    assert not draw_people([moved(PERSON, dx=-5000, dy=-5000)], 64, 64).any()
    at_corner = moved(only(PERSON, "nose"), dx=-PERSON["nose"].x, dy=-PERSON["nose"].y)
    np.testing.assert_array_equal(draw_people([at_corner], 64, 64)[0, 0], LIMB_COLORS[0])


def test_hands_are_drawn_over_bodies_and_joints_not_found_are_not():
    hand = list(hand_at(0, 20))
    hand[12] = None
    canvas = draw_people([Person((None,) * 18, left_hand=tuple(hand))], 64, 64)
    np.testing.assert_array_equal(canvas[20, 0], HAND_JOINT_COLOR)
    assert not canvas[:10].any(), "no dot in the corner for the joint that was not found"
    both = draw_people([dataclasses.replace(PERSON, right_hand=hand_at(100, 50))], 256, 220)
    np.testing.assert_array_equal(both[50, 100], HAND_JOINT_COLOR)


def test_where_hands_are_looked_for():
    boxes = {is_left: (x, y, side) for x, y, side, is_left in hand_boxes(PERSON, 256, 256)}
    for is_left, name in ((True, "left"), (False, "right")):
        x, y, side = boxes[is_left]
        wrist, elbow = PERSON[f"{name}_wrist"], PERSON[f"{name}_elbow"]
        assert x <= wrist.x < x + side
        assert y <= wrist.y < y + side
        assert y + side / 2 > wrist.y, "beyond the wrist, seen from the elbow"
        upper_arm = math.dist(elbow[:2], PERSON[f"{name}_shoulder"][:2])
        assert side == int(1.5 * max(math.dist(wrist[:2], elbow[:2]), 0.9 * upper_arm))
    assert hand_boxes(only(PERSON, "left_wrist", "left_elbow"), 256, 256) == []
    x, y, side, _ = hand_boxes(PERSON, 256, int(PERSON["left_wrist"].x) + 4)[0]
    assert x + side <= int(PERSON["left_wrist"].x) + 4, "cut at the right edge"
    tiny = Person(tuple(Keypoint(joint.x / 20, joint.y / 20) for joint in PERSON.keypoints))
    assert hand_boxes(tiny, 256, 256) == []


def test_similarity_of_a_pose_with_itself_is_one_and_falls_with_the_distance():
    area = 0.5 * 80 * 180
    similarities = [
        object_keypoint_similarity(PERSON, moved(PERSON, dx=dx), area) for dx in (0, 2, 5, 20, 500)
    ]
    assert similarities[0] == 1
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("name", "sigma"), [("nose", "nose"), ("left_hip", "hip"), ("right_wrist", "wrist")])
def test_similarity_of_one_joint_is_the_formula(name: str, sigma: str):
    joint = only(PERSON, name)
    area, distance = 3600.0, math.hypot(3, 4)
    expected = math.exp(-(distance**2) / (2 * area * (2 * COCO_SIGMAS[sigma]) ** 2))
    similarity = object_keypoint_similarity(joint, moved(PERSON, 3, 4), area)
    assert similarity == pytest.approx(expected)
    assert object_keypoint_similarity(moved(joint, 3, 4), PERSON, area) == pytest.approx(expected)


def test_similarity_counts_the_joints_that_were_asked_for():
    arms = only(PERSON, "left_wrist", "left_elbow", "right_wrist", "right_elbow")
    left_arm = only(PERSON, "left_wrist", "left_elbow")
    assert object_keypoint_similarity(arms, left_arm, 1000) == 0.5
    assert object_keypoint_similarity(left_arm, arms, 1000) == 1
    with_neck = only(PERSON, "left_wrist", "left_elbow", "neck")
    assert object_keypoint_similarity(with_neck, left_arm, 1000) == 1, "COCO knows no neck"


def test_similarity_wants_something_to_compare():
    with pytest.raises(ValueError, match="no joint that COCO knows"):
        object_keypoint_similarity(only(PERSON, "neck"), PERSON, 1000)
    for area in (0, -1, math.nan):
        with pytest.raises(ValueError, match="area must be above 0"):
            object_keypoint_similarity(PERSON, PERSON, area)
