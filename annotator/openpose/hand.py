"""The hand detector: a square around a hand in, its 21 joints out (the original's ``openpose/hand.py``)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from annotator.network import NetworkDetector, check_picture
from annotator.openpose.maps import BOX_SIZE, as_array, network_input, warm_window
from annotator.openpose.model import handpose_model, load_network
from annotator.openpose.people import HAND_JOINTS, Joints, Keypoint

SCALES = (0.5, 1.0, 1.5, 2.0)
"""The heights, in ``BOX_SIZE``, at which the network sees the hand; its maps are averaged."""

LEAST_HEAT = 0.05
"""Where a blurred heat map is higher, a joint may be."""


class Hand(NetworkDetector):
    """Finds the joints of one hand. Arguments as in ``NetworkDetector``."""

    checkpoint_names = ("hand_pose_model.pth",)
    half_is_safe = False  # as for the body

    def build(self, checkpoint: Path) -> handpose_model:
        """The network of a ``hand_pose_model.pth``. Raises as ``load_network`` does."""
        return load_network(handpose_model, checkpoint, "The hands' weights are in hand_pose_model.pth.")

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The original's form of ``joints``: int64 ``[21, 2]``, x and y, (0, 0) where one was not found."""
        return np.array([(0, 0) if joint is None else joint[:2] for joint in self.joints(picture)], np.int64)

    @torch.inference_mode()
    def joints(self, picture: np.ndarray) -> Joints:
        """Find the joints of the hand in a picture.

        Args:
            picture: uint8 **BGR** ``[H, W, 3]`` with one hand, about square; see ``util.hand_boxes``.

        Returns:
            21 joints: the wrist, then four for each finger from the thumb on; None where one was not found.

        Raises:
            ValueError: another dtype or shape, too wide or too narrow a picture, or an overflow in float16.
            WeightsError: as ``model`` does, with the first picture.
        """
        check_picture(picture)
        heat = np.zeros((HAND_JOINTS, *picture.shape[:2]))
        for scale in SCALES:
            x, enlarging = network_input(picture, scale * BOX_SIZE)
            maps = as_array(self.model(x.to(self.device, self.dtype)))
            for joint, large in enumerate(enlarging.each(maps[:HAND_JOINTS])):
                heat[joint] += large / len(SCALES)
        return tuple(map(_find_joint, heat))


def _find_joint(heat: np.ndarray) -> Keypoint | None:
    """The highest pixel of the warm region with the largest sum, in a map ``[H, W]``."""
    window = warm_window(heat, LEAST_HEAT)
    if window is None:
        return None
    count, regions = cv2.connectedComponents((window.blurred > LEAST_HEAT).astype(np.uint8), connectivity=8)
    if count == 1:
        return None
    rows, columns = regions.shape
    heat = heat[window.top : window.top + rows, window.left : window.left + columns]
    sums = np.bincount(regions.ravel(), weights=heat.ravel())
    best = 1 + np.argmax(sums[1:])
    y, x = np.unravel_index(np.argmax(np.where(regions == best, heat, -np.inf)), heat.shape)
    return Keypoint(int(x + window.left), int(y + window.top), float(heat[y, x]))
