"""The body detector: a picture in, joints and people out (the original's ``openpose/body.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from annotator.network import NetworkDetector, check_picture
from annotator.openpose.decoding import decode
from annotator.openpose.maps import BOX_SIZE, as_array, network_input
from annotator.openpose.model import bodypose_model, load_network


class Body(NetworkDetector):
    """Finds the bodies in a picture. Arguments as in ``NetworkDetector``.

    The network sees every picture at a height of 184 pixels: small people are not found, at any resolution.
    """

    checkpoint_names = ("body_pose_model.pth",)
    # Rounding to float16 moves no joint by more than a pixel, but whether the released weights keep within
    # its range is not known, and a network this small gains little.
    half_is_safe = False

    def build(self, checkpoint: Path) -> bodypose_model:
        """The network of a ``body_pose_model.pth``. Raises as ``load_network`` does."""
        return load_network(bodypose_model, checkpoint, "The body's weights are in body_pose_model.pth.")

    @torch.inference_mode()
    def __call__(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find joints and people.

        Args:
            picture: uint8 **BGR** ``[H, W, 3]``, as the original wants it.

        Returns:
            ``candidate``, float64 ``[n, 4]``: x, y (pixels), score and number of each joint found, whosever
            it is; and ``subset``, float64 ``[m, 20]``: for each person the numbers of 18 joints in the order
            of ``people.KEYPOINT_NAMES`` (-1: not found), the sum of the scores of joints and limbs, and how
            many joints.

        Raises:
            ValueError: another dtype or shape, too wide or too narrow a picture, or an overflow in float16.
            WeightsError: as ``model`` does, with the first picture.
        """
        check_picture(picture)
        x, enlarging = network_input(picture, 0.5 * BOX_SIZE)
        fields, heat = self.model(x.to(self.device, self.dtype))
        return decode(as_array(fields), as_array(heat), enlarging)
