"""Small array helpers that every front end shares (the original's ``annotator/util.py``)."""

from __future__ import annotations

import cv2
import numpy as np

from ldm.files import ROOT

annotator_ckpts_path = str(ROOT / "annotator" / "ckpts")
"""The folder of the detectors' weights that come with the project; `ldm.files.find_file` finds others too."""

MAX_PIXELS = 32_000_000
"""No picture may hold more pixels than this, neither as read nor as resized: 32 megapixels."""


def HWC3(picture: np.ndarray) -> np.ndarray:
    """Give any 8-bit picture three channels.

    Args:
        picture: uint8, ``[H, W]`` or ``[H, W, 1]`` grey, ``[H, W, 3]`` RGB or ``[H, W, 4]`` RGBA, in [0,
            255].

    Returns:
        uint8 ``[H, W, 3]``. Grey is repeated, RGB is returned as it is, RGBA is laid over white.

    Raises:
        ValueError: another dtype, number of dimensions or number of channels.
    """
    if picture.dtype != np.uint8:
        raise ValueError(f"A picture must be uint8 in [0, 255], got {picture.dtype}.")
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4):
        raise ValueError(f"A picture must be [H, W] or [H, W, 1 | 3 | 4], got {list(picture.shape)}.")
    channels = picture.shape[2]
    if channels == 3:
        return picture
    if channels == 1:
        return np.concatenate([picture] * 3, axis=2)
    color = picture[:, :, :3].astype(np.float32)
    alpha = picture[:, :, 3:].astype(np.float32) / 255.0
    over_white = color * alpha + 255.0 * (1.0 - alpha)
    return over_white.clip(0, 255).astype(np.uint8)


def resized_shape(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width that `resize_image` gives a picture, without touching one. Errors as there."""
    if min(height, width) < 1:
        raise ValueError(f"The picture is empty: {width}x{height} pixels.")
    scale = float(resolution) / min(height, width)
    new_height, new_width = (int(np.round(side * scale / 64.0)) * 64 for side in (height, width))
    if min(new_height, new_width) < 64:
        raise ValueError(f"A resolution of {resolution} rounds to 0 in multiples of 64: ask for 64 or more.")
    if new_height * new_width > MAX_PIXELS:
        raise ValueError(
            f"A picture of {width}x{height} at resolution {resolution} would become "
            f"{new_width}x{new_height}, "
            f"more than {MAX_PIXELS // 1_000_000} megapixels: crop it, or ask for a smaller resolution."
        )
    return new_height, new_width


def resize_image(picture: np.ndarray, resolution: int) -> np.ndarray:
    """Resize so that the short side is about ``resolution`` and both sides are multiples of 64.

    The sides are rounded one by one, so the aspect may change slightly. Lanczos where the picture grows, area
    averages where it shrinks.

    Args:
        picture: uint8 ``[H, W, C]``, in [0, 255].
        resolution: the short side that is wanted, in pixels.

    Returns:
        uint8 ``[H', W', C]`` with H' and W' multiples of 64.

    Raises:
        ValueError: a side would round to 0, or the result would exceed 32 megapixels.
    """
    height, width = resized_shape(*picture.shape[:2], resolution)
    grows = float(resolution) / min(picture.shape[:2]) > 1
    interpolation = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    return cv2.resize(picture, (width, height), interpolation=interpolation)


def nms(x: np.ndarray, t: float, s: float) -> np.ndarray:
    """Thin soft edges to lines ("non-maximum suppression"): blur, then keep what no neighbor exceeds along at
    least one of four directions.

    Args:
        x: a map of edges ``[H, W]``, such as ``HEDdetector`` gives.
        t: what stays must be above this, after the blur.
        s: sigma of the Gaussian blur, in pixels.

    Returns:
        uint8 ``[H, W]``, 0 or 255.
    """
    x = cv2.GaussianBlur(x.astype(np.float32), (0, 0), s)
    is_ridge = np.zeros(x.shape, bool)
    for y_step, x_step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        line = np.zeros((3, 3), np.uint8)
        line[1, 1] = line[1 - y_step, 1 - x_step] = line[1 + y_step, 1 + x_step] = 1
        is_ridge |= cv2.dilate(x, line) == x
    return np.where(np.where(is_ridge, x, 0) > t, np.uint8(255), np.uint8(0))
