"""Hints that come from elsewhere: as files, and as small JSON objects in pictures' metadata and in links."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from controlnet.conditions import Condition, HintReport
from controlnet.generation.checks import MAX_ASPECT, RequestError
from controlnet.pictures import PictureSource, decode

MAX_HINT_PIXELS = 2048 * 4096
"""No hint from elsewhere may hold more: the largest result has a short side of 2048 pixels."""


def read_hint(condition: Condition, source: PictureSource) -> HintReport:
    """``condition.read`` for files of people, whose size is looked at before anything is decoded.

    Raises:
        ConditionError, PictureError: as there, and where the file has more than `MAX_HINT_PIXELS`.
    """
    return condition.read(decode(source, MAX_HINT_PIXELS))


def pack_hint(hint: np.ndarray) -> dict[str, Any]:
    """uint8 ``[H, W]`` or ``[H, W, 3]`` -> a small JSON object; ``unpack_hint`` is its inverse."""
    packed = base64.urlsafe_b64encode(zlib.compress(np.ascontiguousarray(hint).tobytes(), 9)).decode("ascii")
    height, width = hint.shape[:2]
    channels = {"channels": hint.shape[2]} if hint.ndim == 3 else {}
    return {"width": width, "height": height, **channels, "labels": packed}


def unpack_hint(packed: Any) -> np.ndarray:
    """The inverse of ``pack_hint`` for data that anyone may have written: never inflates more than it states.

    Raises:
        RequestError: not such an object, larger than `MAX_HINT_PIXELS`, or size and data disagree.
    """
    try:
        width, height, text = int(packed["width"]), int(packed["height"]), packed["labels"]
        channels = int(packed.get("channels", 1))
        if not (width > 0 and height > 0 and width * height <= MAX_HINT_PIXELS and channels in (1, 3)):
            raise ValueError(f"{width}x{height} pixels of {channels} channels")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"{width}x{height} pixels, too long for its width")
        size = width * height * channels
        data = zlib.decompressobj().decompress(base64.urlsafe_b64decode(text), size + 1)
        if len(data) != size:
            raise ValueError(f"data for another size than {width}x{height}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise RequestError(f"The stored hint cannot be read ({error}).") from error
    array = np.frombuffer(data, dtype=np.uint8)
    return array.reshape((height, width) if channels == 1 else (height, width, channels))
