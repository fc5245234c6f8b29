"""People as the pose detector finds them: named joints, the limbs between them, hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

KEYPOINT_NAMES = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""The 18 joints in OpenPose's order. Left and right are the person's own."""

LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
)  # fmt: skip
"""Joints that a limb connects, in the order in which people are put together. The last two are not drawn."""

HAND_JOINTS = 21
"""The wrist, then four joints for each finger from the thumb on, the tip last."""


class Keypoint(NamedTuple):
    """A joint: ``x`` to the right and ``y`` down, in pixels, and how sure the network is, about [0, 1]."""

    x: float
    y: float
    score: float = 1.0


Joints = tuple[Keypoint | None, ...]
"""Joints in a fixed order, None where one was not found."""


@dataclass(frozen=True)
class Person:
    """One person in a picture.

    Attributes:
        keypoints: the 18 joints in the order of ``KEYPOINT_NAMES``, None where one was not found.
        score: how sure the detector is: the mean over the joints, each with the limb that led to it.
        left_hand: its 21 joints, or None where the hand was not looked for or is too small.
        right_hand: likewise.

    Raises:
        ValueError: another number of joints.
    """

    keypoints: Joints
    score: float = 1.0
    left_hand: Joints | None = None
    right_hand: Joints | None = None

    def __post_init__(self):
        if len(self.keypoints) != len(KEYPOINT_NAMES):
            raise ValueError(f"A person has {len(KEYPOINT_NAMES)} keypoints, got {len(self.keypoints)}.")
        for hand in (self.left_hand, self.right_hand):
            if hand is not None and len(hand) != HAND_JOINTS:
                raise ValueError(f"A hand has {HAND_JOINTS} joints, got {len(hand)}.")

    def __getitem__(self, name: str) -> Keypoint | None:
        """The joint of that name; ValueError for a name that is none of ``KEYPOINT_NAMES``."""
        if name not in KEYPOINT_NAMES:
            raise ValueError(f"{name!r} is no joint; the joints are {', '.join(KEYPOINT_NAMES)}.")
        return self.keypoints[KEYPOINT_NAMES.index(name)]

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right and bottom of the joints of the body, in pixels; None where there is no joint."""
        found = [joint for joint in self.keypoints if joint is not None]
        if not found:
            return None
        xs, ys = [joint.x for joint in found], [joint.y for joint in found]
        return min(xs), min(ys), max(xs), max(ys)


def people_of(candidate: np.ndarray, subset: np.ndarray) -> list[Person]:
    """The people in what ``Body`` gives.

    Args:
        candidate: ``[n, 4]``: x, y, score and number of each joint found.
        subset: ``[m, 20]``: for each person 18 numbers of joints (-1: not found), the sum of scores, how many
            joints.
    """
    joints = [Keypoint(*row[:3]) for row in np.asarray(candidate, np.float64).tolist()]
    return [
        Person(
            tuple(None if index < 0 else joints[int(index)] for index in row[:18]), score=row[18] / row[19]
        )
        for row in np.asarray(subset, np.float64).tolist()
    ]
