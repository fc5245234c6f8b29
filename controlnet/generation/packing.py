"""Hints that come from elsewhere: as files, and as small JSON objects in pictures' metadata and in links."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from controlnet.conditions import Condition, HintReport
from controlnet.generation.checks import MAX_ASPECT, RequestError, short_repr
from controlnet.pictures import PictureError, PictureSource, decode, read_picture

MAX_HINT_PIXELS = 2048 * 4096
"""No hint from elsewhere may hold more: the largest result has a short side of 2048 pixels."""

MAX_SOURCE_TEXT = 3_000_000
"""Characters that a source picture may take in a picture's metadata; a larger one is told by its hash."""


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


def read_mask(source: PictureSource) -> np.ndarray:
    """A mask from a file: uint8 ``[H, W]``, white (255) where the source is painted anew.

    Raises:
        PictureError: no picture, or one with transparent pixels, of which nobody knows what they mean.
    """
    picture = decode(source, MAX_HINT_PIXELS)
    if picture.transparent() is not None:
        raise PictureError(picture.name, "a mask is black and white; this one has transparent pixels")
    return picture.rgb().max(axis=2)


def pack_source(source: np.ndarray) -> dict[str, Any]:
    """A source picture, uint8 RGB ``[H, W, 3]``, as a JSON object: a PNG in base64 where that is small
    enough, else its hash alone.
    """
    buffer = io.BytesIO()
    Image.fromarray(source).save(buffer, format="PNG")
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"sha256": array_hash(source)} | ({"png": text} if len(text) <= MAX_SOURCE_TEXT else {})


def array_hash(array: np.ndarray) -> str:
    """Tells a picture from others: 16 characters of the SHA-256 of its pixels."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def unpack_source(packed: Any) -> np.ndarray:
    """The inverse of `pack_source` for data that anyone may have written.

    Raises:
        RequestError: what cannot be read, or a source that is told by its hash alone.
    """
    if not isinstance(packed, Mapping) or not isinstance(packed.get("png"), str):
        known = f" ({short_repr(packed.get('sha256'))})" if isinstance(packed, Mapping) and packed else ""
        raise RequestError(
            f"It was made from a source picture that is too large to be kept in it{known}: give that picture "
            "and the settings again."
        )
    try:
        return read_picture(base64.b64decode(packed["png"]))
    except (PictureError, ValueError) as error:
        raise RequestError(f"The stored source cannot be read ({error}).") from error
