"""Edges where the brightness jumps, by Canny's detector (the original's ``annotator/canny``)."""

from __future__ import annotations

import cv2
import numpy as np

from annotator.network import check_picture


class CannyDetector:
    """OpenCV's ``Canny`` over three channels: a 3x3 Sobel and the L1 norm of the gradient. No weights."""

    def __call__(self, img: np.ndarray, low_threshold: float, high_threshold: float) -> np.ndarray:
        """Draw the edges, white and one pixel wide on black.

        Args:
            img: uint8 RGB ``[H, W, 3]``, in [0, 255].
            low_threshold: an edge goes on where the gradient, in steps of brightness, is above this.
            high_threshold: an edge begins where it is above this. OpenCV swaps the two where the low one is
                the higher one.

        Returns:
            uint8 ``[H, W]``, 0 or 255.

        Raises:
            ValueError: a picture of another dtype or shape.
        """
        check_picture(img)
        return cv2.Canny(img, low_threshold, high_threshold)


def apply_canny(img: np.ndarray, low_threshold: float, high_threshold: float) -> np.ndarray:
    """`CannyDetector` as a function: the name in the original's first version."""
    return CannyDetector()(img, low_threshold, high_threshold)
