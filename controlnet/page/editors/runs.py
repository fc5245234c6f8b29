"""Hints on their way to the browser and back: runs of equal values, so that nothing blurs them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from controlnet.generation.packing import MAX_HINT_PIXELS
from controlnet.generation.request import RequestError
from controlnet.page.browser import browser_part

_HERE = Path(__file__).resolve().parent
_MAX_RUN = 65535
_SHARED = ("runs", "roving", "raster", "steps", "zoom", "input", "board", "search")


def editor_component(name: str, **options: Any) -> gr.HTML:
    """A component of the files ``NAME.html``, ``NAME.css`` and ``NAME.js`` of this folder."""
    return browser_part(name, _SHARED, _HERE, **options)


def pack_runs(values: np.ndarray) -> dict[str, Any]:
    """uint8 ``[H, W]`` -> width, height, and runs of (value, length as two bytes, low first) in base64."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    pieces = -(-lengths // _MAX_RUN)  # a run that is too long becomes several
    firsts = np.repeat(flat[starts], pieces)
    sizes = np.full(len(firsts), _MAX_RUN)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _MAX_RUN
    data = np.stack([firsts, sizes & 255, sizes >> 8], axis=1).astype(np.uint8).tobytes()
    height, width = values.shape
    return {"width": width, "height": height, "runs": base64.b64encode(data).decode("ascii")}


def unpack_runs(packed: Any) -> np.ndarray:
    """The inverse of ``pack_runs``, uint8 ``[H, W]``; the data may come from anyone.

    Raises:
        RequestError: not such an object, or runs that do not make up the size.
    """
    try:
        width, height = int(packed["width"]), int(packed["height"])
        runs = np.frombuffer(base64.b64decode(packed["runs"], validate=True), dtype=np.uint8).reshape(-1, 3)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"The edited map cannot be read ({error}).") from error
    lengths = runs[:, 1].astype(np.int64) | (runs[:, 2].astype(np.int64) << 8)
    fits = width > 0 and height > 0 and width * height <= MAX_HINT_PIXELS
    if not (fits and lengths.sum() == width * height):
        raise RequestError(f"The edited map is damaged: {lengths.sum()} pixels for {width}x{height}.")
    return np.repeat(runs[:, 0], lengths).reshape(height, width)


def picture_url(picture: np.ndarray | None, shape: tuple[int, ...]) -> str | None:
    """A picture as a ``data:`` URL of about the map's size: for the eye only, so JPEG will do."""
    if picture is None:
        return None
    image = Image.fromarray(picture)
    image.thumbnail((max(shape[:2]), max(shape[:2])))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
