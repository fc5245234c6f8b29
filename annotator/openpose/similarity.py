"""How alike two poses are: COCO's object keypoint similarity, the measure of the COCO keypoint challenge."""

from __future__ import annotations

import math

from annotator.openpose.people import KEYPOINT_NAMES, Keypoint, Person

COCO_SIGMAS = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
}
"""How far apart people mark a joint: standard deviation, over the square root of the person's area."""

KEYPOINT_SIGMAS = tuple(COCO_SIGMAS.get(name.rpartition("_")[2]) for name in KEYPOINT_NAMES)
"""For each of ``KEYPOINT_NAMES``, None for the neck."""


def object_keypoint_similarity(a: Person, b: Person, area: float) -> float:
    """COCO's OKS of two poses: the mean over the joints of ``a`` of exp(-distance² / (2 · area · (2 ·
    sigma)²)).

    Joints that ``a`` lacks do not count, those that only ``b`` lacks count as 0; so it is not symmetric. The
    neck is no joint of COCO and is left out.

    Args:
        a: the pose that was asked for.
        b: the pose that was found.
        area: of the person ``a`` in square pixels; COCO takes that of the segment, about half of the box.

    Returns:
        from 0 to 1, where 1 is the same pose.

    Raises:
        ValueError: the area is not above 0, or ``a`` has no joint but perhaps a neck.
    """
    if not area > 0:
        raise ValueError(f"The area must be above 0, got {area}.")
    similarities = [
        _joint_similarity(joint, b.keypoints[part], area * (2 * sigma) ** 2)
        for part, (joint, sigma) in enumerate(zip(a.keypoints, KEYPOINT_SIGMAS, strict=True))
        if joint is not None and sigma is not None
    ]
    if not similarities:
        raise ValueError(
            "The pose that was asked for has no joint that COCO knows: there is nothing to compare."
        )
    return sum(similarities) / len(similarities)


def _joint_similarity(a: Keypoint, b: Keypoint | None, variance: float) -> float:
    return 0.0 if b is None else math.exp(-(math.dist(a[:2], b[:2]) ** 2) / (2 * variance))
