"""From depth to the two hints that are made of it, without a network (the original's ``annotator/midas``)."""

from __future__ import annotations

import logging

import cv2
import numpy as np

logger = logging.getLogger(__name__)


def depth_picture(depth: np.ndarray) -> np.ndarray:
    """What a depth ControlNet sees: near is bright.

    Args:
        depth: real numbers ``[H, W]``, relative inverse depth in any unit (large is near).

    Returns:
        uint8 ``[H, W]``: 0 at the smallest value and 255 at the largest; 0 everywhere where the depth is
        constant.

    Raises:
        ValueError: no ``[H, W]`` of finite numbers.
    """
    depth = _checked(depth)
    nearness = _nearness(depth)
    if not nearness.any():
        logger.info("The depth is the same everywhere: its picture is empty (all 0).")
    return (nearness * np.float32(255)).astype(np.uint8)


def normal_picture(depth: np.ndarray, a: float = np.pi * 2.0, bg_th: float = 0.1) -> np.ndarray:
    """Surface normals (x, y, z), each from [-1, 1] to [0, 255], in this order of channels.

    A ControlNet for normals sees the channels reversed. Sobel's derivatives are taken of the raw depth, so
    that the steepness follows its unit: drawn depth may need another ``a`` than a network's.

    Args:
        depth: real numbers ``[H, W]``, relative inverse depth (large is near).
        a: the z of a normal before it gets unit length; the larger, the flatter everything seems.
        bg_th: the background, which faces the viewer, is what lies below this share of the depth's range, in
            [0, 1].

    Returns:
        uint8 ``[H, W, 3]``; (127, 127, 255) where the surface faces the viewer, so everywhere where the depth
        is constant.

    Raises:
        ValueError: no ``[H, W]`` of finite numbers, or an ``a`` that is not above 0.
    """
    depth = _checked(depth)
    if not a > 0:
        raise ValueError(f"a is {a}; a number above 0 is wanted.")
    background = _nearness(depth) < bg_th
    normal = np.empty((*depth.shape, 3), np.float32)
    for axis in range(2):
        slope = cv2.Sobel(depth, cv2.CV_32F, 1 - axis, axis, ksize=3)
        slope[background] = 0
        normal[:, :, axis] = slope
    normal[:, :, 2] = a
    if not normal[:, :, :2].any():
        logger.info("The depth has no slope before its background: all normals face the viewer.")
    normal /= np.sqrt(np.square(normal).sum(axis=2, keepdims=True))
    return (normal * np.float32(127.5) + np.float32(127.5)).astype(np.uint8)


def _nearness(depth: np.ndarray) -> np.ndarray:
    """0 at the smallest value of the depth to 1 at the largest, or 0 everywhere; float32."""
    nearness = depth - depth.min()
    largest = nearness.max()
    return nearness / largest if largest > 0 else nearness


def _checked(depth: np.ndarray) -> np.ndarray:
    """As float32."""
    depth = np.asarray(depth)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "uif":
        raise ValueError(f"Depth must be numbers [H, W], got {depth.dtype} {list(depth.shape)}.")
    depth = depth.astype(np.float32)
    if not np.isfinite(depth).all():
        raise ValueError("The depth holds NaN or infinity: the weights that made it may be damaged.")
    return depth
