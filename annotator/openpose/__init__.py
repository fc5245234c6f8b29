"""The pose detector: a picture in, the skeletons of its people out (the original's ``annotator/openpose``).

Written anew from the papers that ``model.py`` names. The released weights are for noncommercial use.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import cache

import numpy as np

from annotator.network import check_picture
from annotator.openpose.body import Body
from annotator.openpose.hand import Hand
from annotator.openpose.people import KEYPOINT_NAMES, Joints, Keypoint, Person, people_of
from annotator.openpose.util import draw_people, hand_boxes

__all__ = [
    "KEYPOINT_NAMES",
    "Body",
    "Hand",
    "Joints",
    "Keypoint",
    "OpenposeDetector",
    "Person",
    "apply_openpose",
    "draw_people",
]

logger = logging.getLogger(__name__)


class OpenposeDetector:
    """Finds people and draws their skeletons; one may serve several threads.

    Args:
        body: finds the bodies; by default with ``annotator/ckpts/body_pose_model.pth``.
        hand: finds the joints of hands; by default with ``annotator/ckpts/hand_pose_model.pth``, where
            ``body`` runs. Its weights are not read before hands are asked for.
    """

    checkpoint_names = Body.checkpoint_names
    """File names of the body's weights in ``annotator/ckpts``."""

    def __init__(self, body: Body | None = None, hand: Hand | None = None):
        self.body = body or Body()
        self.hand = hand or Hand(device=self.body.device, dtype=self.body.dtype)

    def __call__(self, picture: np.ndarray, hand: bool = False) -> tuple[np.ndarray, dict[str, list]]:
        """Draw the skeletons of the people in a picture.

        Args:
            picture: uint8 RGB ``[H, W, 3]``.
            hand: look for hands, too.

        Returns:
            the skeletons on black, uint8 RGB ``[H, W, 3]`` (all black where nobody is found), and
            ``candidate`` and ``subset`` as ``Body`` gives them, as lists.

        Raises:
            ValueError: another dtype or shape, or too wide or too narrow a picture.
            WeightsError: a network's weights are missing or do not fit, with the first picture.
        """
        candidate, subset, people = self._find(picture, hand)
        canvas = draw_people(people, *picture.shape[:2])
        return canvas, {"candidate": candidate.tolist(), "subset": subset.tolist()}

    def load(self) -> None:
        """Load the body's network now rather than with the first picture."""
        self.body.load()

    def people(self, picture: np.ndarray, hand: bool = False) -> list[Person]:
        """The people in a picture, for ``draw_people``; arguments and errors as in a call."""
        return self._find(picture, hand)[2]

    def _find(self, picture: np.ndarray, hand: bool) -> tuple[np.ndarray, np.ndarray, list[Person]]:
        check_picture(picture)
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        candidate, subset = self.body(bgr)
        people = people_of(candidate, subset)
        if not people:
            logger.info("Nobody is found in the picture of %dx%d pixels.", *bgr.shape[1::-1])
        if hand:
            people = [self._with_hands(person, bgr) for person in people]
        return candidate, subset, people

    def _with_hands(self, person: Person, bgr: np.ndarray) -> Person:
        hands: dict[str, Joints] = {}
        for x, y, side, is_left in hand_boxes(person, *bgr.shape[:2]):
            joints = self.hand.joints(bgr[y : y + side, x : x + side])
            hands["left_hand" if is_left else "right_hand"] = tuple(
                joint and Keypoint(joint.x + x, joint.y + y, joint.score) for joint in joints
            )
        return dataclasses.replace(person, **hands)


_detector = cache(OpenposeDetector)


def apply_openpose(oriImg: np.ndarray, hand: bool = False) -> tuple[np.ndarray, dict[str, list]]:
    """`OpenposeDetector` with its defaults, as a function: the name in the original's first version."""
    return _detector()(oriImg, hand)
