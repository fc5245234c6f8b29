"""Aspect-ratio buckets: pictures of like shape train together, so that none is squeezed and little is cut
off.

The idea is NovelAI's (https://github.com/NovelAI/novelai-aspect-ratio-bucketing): sides in multiples of 64,
an area of at most resolution², and each picture in the bucket whose aspect is nearest to its own in
logarithm.
"""

from __future__ import annotations

import cv2
import numpy as np

from controlnet.training.data.records import DataError

MULTIPLE = 64
"""Sides of a bucket are multiples of this: the VAE divides by 8 and the UNet by another 8."""


def make_buckets(resolution: int, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """All shapes for a resolution.

    Args:
        resolution: a multiple of 64, in pixels; resolution² is the greatest area of a bucket.
        max_aspect: the longer side is at most this many times the shorter one.

    Returns:
        (height, width) in pixels, ordered from the tallest to the widest; the square is always among them.

    Raises:
        DataError: another resolution.
    """
    if resolution < MULTIPLE or resolution % MULTIPLE:
        raise DataError(f"The resolution must be a multiple of {MULTIPLE}, got {resolution}.")
    buckets = set()
    for side in range(MULTIPLE, int(resolution * max_aspect) + 1, MULTIPLE):
        other = resolution**2 // side // MULTIPLE * MULTIPLE
        if other >= MULTIPLE and max(side, other) <= max_aspect * min(side, other):
            buckets |= {(side, other), (other, side)}
    return sorted(buckets, key=lambda bucket: bucket[1] / bucket[0])


def assign_buckets(sizes: np.ndarray, buckets: list[tuple[int, int]]) -> np.ndarray:
    """The bucket for each picture.

    Args:
        sizes: int ``[N, 2]``, heights and widths in pixels.

    Returns:
        int ``[N]``, indices into ``buckets``.
    """
    aspects = np.log(sizes[:, 1] / sizes[:, 0])
    bucket_aspects = np.array([np.log(width / height) for height, width in buckets])
    return np.abs(aspects[:, None] - bucket_aspects[None, :]).argmin(axis=1)


def fit(picture: np.ndarray, height: int, width: int, *, nearest: bool = False) -> np.ndarray:
    """Scale a picture so that it covers ``height`` × ``width``, and crop it to that, evenly on both sides.

    Args:
        picture: ``[H, W, C]``.
        nearest: repeat pixels instead of averaging them: for maps whose colours are names. Otherwise area
            averages where the picture shrinks, Lanczos where it grows.

    Returns:
        ``[height, width, C]``, of the same dtype.
    """
    have_height, have_width = picture.shape[:2]
    scale = max(height / have_height, width / have_width)
    new_height, new_width = max(height, round(have_height * scale)), max(width, round(have_width * scale))
    if (new_height, new_width) != (have_height, have_width):
        smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LANCZOS4
        method = cv2.INTER_NEAREST_EXACT if nearest else smooth
        picture = cv2.resize(picture, (new_width, new_height), interpolation=method)
    top, left = (new_height - height) // 2, (new_width - width) // 2
    return picture[top : top + height, left : left + width]
