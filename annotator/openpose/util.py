"""Drawing people and hands, and where to look for hands (the original's ``openpose/util.py``)."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np

from annotator.openpose.people import LIMBS, Joints, Keypoint, Person, people_of

LIMB_COLORS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
"""RGB of the 18 joints, and of the first 17 limbs of ``LIMBS``."""

DRAWN_LIMBS = LIMBS[:17]
LIMB_OPACITY = 0.6
HALF_WIDTH = 4
"""In pixels: of a limb, and the radius of a joint."""

HAND_BONES = tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21))
"""From the wrist along each finger."""

HAND_JOINT_COLOR = (0, 0, 255)
LEAST_HAND = 20
"""Hands in a smaller square, in pixels, are not looked at."""


def draw_people(people: Sequence[Person], height: int, width: int) -> np.ndarray:
    """The skeletons of people on black, as the network is taught to see them.

    Returns:
        uint8 RGB ``[height, width, 3]``.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    _draw_bodies(canvas, people)
    for person in people:
        for hand in (person.left_hand, person.right_hand):
            if hand is not None:
                _draw_bones(canvas, hand)
                _draw_dots(canvas, hand)
    return canvas


def draw_bodypose(canvas: np.ndarray, candidate: np.ndarray, subset: np.ndarray) -> np.ndarray:
    """Draw what ``Body`` gives on a copy of a picture.

    Args:
        canvas: uint8 RGB ``[H, W, 3]``.
        candidate: ``[n, 4]``; see ``people.people_of``.
        subset: ``[m, 20]``.
    """
    canvas = canvas.copy()
    _draw_bodies(canvas, people_of(candidate, subset))
    return canvas


def draw_handpose(canvas: np.ndarray, all_hand_peaks: Sequence[np.ndarray]) -> np.ndarray:
    """Draw what ``Hand`` gives on a copy of a picture, as the original does.

    So a joint with a 0 in it counts as not found: its bones are left out, but its dot is drawn.
    ``draw_people`` draws all that was found, and nothing else.

    Args:
        canvas: uint8 RGB ``[H, W, 3]``.
        all_hand_peaks: ``[21, 2]`` for each hand, x and y in pixels.
    """
    canvas = canvas.copy()
    for peaks in all_hand_peaks:
        joints = [Keypoint(int(x), int(y)) for x, y in peaks]
        _draw_bones(canvas, [joint if joint.x and joint.y else None for joint in joints])
        _draw_dots(canvas, joints)
    return canvas


def handDetect(candidate: np.ndarray, subset: np.ndarray, oriImg: np.ndarray) -> list[list]:
    """Squares around the hands of the people in a picture.

    Args:
        candidate: ``[n, 4]``; see ``people.people_of``.
        subset: ``[m, 20]``.
        oriImg: the picture ``[H, W, ...]``; only its size matters.

    Returns:
        x, y, side (pixels) and whether it is the left hand; the left one of a person first.
    """
    height, width = oriImg.shape[:2]
    return [list(box) for person in people_of(candidate, subset) for box in hand_boxes(person, height, width)]


def hand_boxes(person: Person, height: int, width: int) -> list[tuple[int, int, int, bool]]:
    """Squares around the hands of a person whose arms are seen, as in ``handDetect``.

    A hand lies a third of the forearm beyond the wrist. Its square is half as large again as the forearm (or
    nine tenths of the upper arm), starts within the picture and is cut at its right and lower edge.
    """
    boxes = []
    for side in ("left", "right"):
        shoulder, elbow, wrist = (person[f"{side}_{joint}"] for joint in ("shoulder", "elbow", "wrist"))
        if shoulder is None or elbow is None or wrist is None:
            continue
        forearm = math.dist(wrist[:2], elbow[:2])
        length = 1.5 * max(forearm, 0.9 * math.dist(elbow[:2], shoulder[:2]))
        x, y = (max(w + 0.33 * (w - e) - length / 2, 0) for w, e in zip(wrist[:2], elbow[:2], strict=True))
        length = min(length, width - x, height - y)
        if length >= LEAST_HAND:
            boxes.append((int(x), int(y), int(length), side == "left"))
    return boxes


def _draw_bodies(canvas: np.ndarray, people: Sequence[Person]) -> None:
    for part, color in enumerate(LIMB_COLORS):
        for person in people:
            joint = person.keypoints[part]
            if joint is not None:
                cv2.circle(canvas, (int(joint.x), int(joint.y)), HALF_WIDTH, color, thickness=-1)
    for limb, color in zip(DRAWN_LIMBS, LIMB_COLORS, strict=False):
        for person in people:
            start, end = (person.keypoints[part] for part in limb)
            if start is not None and end is not None:
                _draw_limb(canvas, start, end, color)


def _draw_limb(canvas: np.ndarray, start: Keypoint, end: Keypoint, color: tuple[int, int, int]) -> None:
    """A translucent ellipse from joint to joint."""
    middle = (int((start.x + end.x) / 2), int((start.y + end.y) / 2))
    axes = (int(math.dist(start[:2], end[:2]) / 2), HALF_WIDTH)
    angle = int(math.degrees(math.atan2(start.y - end.y, start.x - end.x)))
    outline = cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1)
    left, top = outline.min(axis=0).clip(0)
    right, bottom = outline.max(axis=0).clip(-1) + 1
    window = canvas[top:bottom, left:right]  # blending changes nothing elsewhere
    if window.size:
        painted = cv2.fillConvexPoly(window.copy(), outline - (left, top), color)
        window[:] = cv2.addWeighted(window, 1 - LIMB_OPACITY, painted, LIMB_OPACITY, 0)


def _draw_bones(canvas: np.ndarray, joints: Joints | Sequence[Keypoint | None]) -> None:
    for number, bone in enumerate(HAND_BONES):
        start, end = (joints[joint] for joint in bone)
        if start is not None and end is not None:
            color = [255 * part for part in colorsys.hsv_to_rgb(number / len(HAND_BONES), 1, 1)]
            ends = [(int(joint.x), int(joint.y)) for joint in (start, end)]
            cv2.line(canvas, *ends, color, thickness=2)


def _draw_dots(canvas: np.ndarray, joints: Joints | Sequence[Keypoint | None]) -> None:
    for joint in joints:
        if joint is not None:
            cv2.circle(canvas, (int(joint.x), int(joint.y)), HALF_WIDTH, HAND_JOINT_COLOR, thickness=-1)
