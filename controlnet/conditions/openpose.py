"""Human poses by OpenPose (the original's ``gradio_pose2image.py``)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from annotator.util import HWC3
from controlnet.conditions.base import Condition, Hint, HintReport, Option, Score
from controlnet.pictures import PictureSource, read_picture

_DARK = 16  # a skeleton picture's ground is black, up to what JPEG makes of it


class Openpose(Condition):
    """Hints are skeletons, uint8 RGB ``[H, W, 3]`` on black."""

    name = "openpose"
    title = "Human pose"
    noun = "skeleton"
    is_measured = True
    options = (
        Option("hand", "Hands too", default=0, low=0, high=1, original=False, help="Needs the hand network."),
    )
    detect_label = "OpenPose resolution"
    interpolation = cv2.INTER_NEAREST
    hint_dimensions = 3
    nothing_found = "Nobody was found in the picture: the hint is empty and steers nothing."

    def make_detector(self) -> Any:
        from annotator.openpose import Body, Hand, OpenposeDetector

        return OpenposeDetector(Body(self.weights, device=self.device), Hand(device=self.device))

    def detect(self, picture: np.ndarray, hand: float = 0) -> Hint:
        return self.detector(picture, hand=bool(hand))[0]

    def read(self, source: PictureSource | np.ndarray) -> HintReport:
        hint = HWC3(source if isinstance(source, np.ndarray) else read_picture(source))
        dark = float((hint.max(axis=2) < _DARK).mean())
        warnings = []
        if dark < 0.5:
            warnings.append(
                f"Only {dark:.0%} of the picture is black: a skeleton stands on black. Is it a photograph? "
                "Detect it."
            )
        elif not joints_of(hint):
            warnings.append("No joint has a colour of OpenPose's: is this skeleton drawn in other colours?")
        return HintReport(hint, self.noun, tuple(warnings))

    def score(self, hint: Hint, found: Hint) -> Score | None:
        """COCO's object keypoint similarity over the joints asked for; see `pose_similarity`."""
        if not (asked := joints_of(hint)):
            return None
        value = pose_similarity(asked, joints_of(found))
        return Score("OKS", value, value, {})


Joint = tuple[int, float, float, float]
"""Number of the joint in OpenPose's order, x and y in pixels, and the area of the person's box in
square pixels.
"""


def joints_of(skeletons: np.ndarray) -> list[Joint]:
    """The joints of a skeleton picture, uint8 RGB ``[H, W, 3]``, told by their colours.

    Limbs are laid half transparent over the joints, so that a joint's own colour shows at its rim only; the
    middle of the rim is the joint.
    """
    from annotator.openpose.util import LIMB_COLORS

    drawn = (skeletons.max(axis=2) >= _DARK).astype(np.uint8)
    _, people, stats, _ = cv2.connectedComponentsWithStats(drawn, connectivity=8)
    areas = stats[:, cv2.CC_STAT_WIDTH] * stats[:, cv2.CC_STAT_HEIGHT]
    joints = []
    for part, color in enumerate(LIMB_COLORS):
        alike = (np.abs(skeletons.astype(np.int16) - np.array(color, np.int16)).max(axis=2) <= 12).astype(
            np.uint8
        )
        joined = cv2.morphologyEx(alike, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        _, _, spots, centers = cv2.connectedComponentsWithStats(joined, connectivity=8)
        for spot, (x, y) in zip(spots[1:], centers[1:], strict=True):
            if spot[cv2.CC_STAT_AREA] >= 4:
                left, top = spot[cv2.CC_STAT_LEFT], spot[cv2.CC_STAT_TOP]
                around = people[top : top + spot[cv2.CC_STAT_HEIGHT], left : left + spot[cv2.CC_STAT_WIDTH]]
                joints.append((part, float(x), float(y), float(areas[around.max()])))
    return joints


def pose_similarity(asked: list[Joint], found: list[Joint]) -> float:
    """COCO's object keypoint similarity in [0, 1]: the mean over the joints asked for of exp(-d² / (2 A (2
    σ)²)).

    ``d`` is the distance to the nearest joint found of the same kind, ``A`` half of the box of the person
    asked for and ``σ`` how far apart people mark that joint. The neck is no joint of COCO and does not count.
    """
    from annotator.openpose.similarity import KEYPOINT_SIGMAS

    similarities = []
    for part, x, y, area in asked:
        sigma = KEYPOINT_SIGMAS[part]
        if sigma is None:
            continue
        distances = [(x - u) ** 2 + (y - v) ** 2 for kind, u, v, _ in found if kind == part]
        variance = max(area / 2, 1.0) * (2 * sigma) ** 2
        similarities.append(float(np.exp(-min(distances) / (2 * variance))) if distances else 0.0)
    return float(np.mean(similarities)) if similarities else 0.0


CONDITION = Openpose
