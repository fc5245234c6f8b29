"""The map editor: a gradio component that shows and edits a map of class indices in the browser.

Indices travel, not colours, so that no brush, scaling or compression can blur one class into another. The
browser's half is ``map_editor.js``.
"""

from __future__ import annotations

import base64
import io
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from annotator.ade20k import CLASSES, PALETTE
from annotator.util import MAX_PIXELS
from controlnet.generation.request import RequestError

_HERE = Path(__file__).resolve().parent
_MAX_RUN = 65535


def map_editor(**options: Any) -> gr.HTML:
    """The component. Its value in events is None, or what ``show_map`` makes and ``edited_map`` reads."""
    return gr.HTML(
        html_template=(_HERE / "map_editor.html").read_text(),
        css_template=(_HERE / "map_editor.css").read_text(),
        js_on_load=(_HERE / "map_editor.js").read_text(),
        apply_default_css=False,
        classes=[[name, "#" + bytes(color).hex()] for name, color in zip(CLASSES, PALETTE, strict=True)],
        **options,
    )


def show_map(labels: np.ndarray, picture: np.ndarray | None = None) -> dict[str, Any]:
    """The editor's value for class indices uint8 ``[H, W]``, with a picture under them: uint8 RGB of any
    size.
    """
    # The id tells a new map from the browser's own edits.
    return {**pack_runs(labels), "id": secrets.token_hex(8), "picture": picture_url(picture, labels.shape)}


def edited_map(value: dict[str, Any] | None) -> np.ndarray | None:
    """Class indices uint8 ``[H, W]`` from the browser, or None where it shows none. Errors as
    ``unpack_runs``.
    """
    return unpack_runs(value) if value else None


def pack_runs(labels: np.ndarray) -> dict[str, Any]:
    """uint8 ``[H, W]`` -> width, height, and runs of (index, length as two bytes, low first) in base64."""
    flat = labels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    pieces = -(-lengths // _MAX_RUN)  # a run that is too long becomes several
    values = np.repeat(flat[starts], pieces)
    sizes = np.full(len(values), _MAX_RUN)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _MAX_RUN
    data = np.stack([values, sizes & 255, sizes >> 8], axis=1).astype(np.uint8).tobytes()
    return {
        "width": labels.shape[1],
        "height": labels.shape[0],
        "runs": base64.b64encode(data).decode("ascii"),
    }


def unpack_runs(packed: Any) -> np.ndarray:
    """The inverse of ``pack_runs``; the data may come from anyone.

    Raises:
        RequestError: not such an object, an index without a class, or runs that do not make up the size.
    """
    try:
        width, height = int(packed["width"]), int(packed["height"])
        runs = np.frombuffer(base64.b64decode(packed["runs"], validate=True), dtype=np.uint8).reshape(-1, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"The edited map cannot be read ({error}).") from error
    lengths = runs[:, 1].astype(np.int64) | (runs[:, 2].astype(np.int64) << 8)
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS and lengths.sum() == width * height):
        raise RequestError(f"The edited map is damaged: {lengths.sum()} pixels for {width}x{height}.")
    if runs[:, 0].max() >= len(CLASSES):
        raise RequestError(
            f"The edited map holds index {runs[:, 0].max()}; the last class is {len(CLASSES) - 1}."
        )
    return np.repeat(runs[:, 0], lengths).reshape(height, width)


def picture_url(picture: np.ndarray | None, shape: tuple[int, int]) -> str | None:
    """A picture as a ``data:`` URL of about the map's size: for the eye only, so JPEG will do, and no file is
    left.
    """
    if picture is None:
        return None
    image = Image.fromarray(picture)
    image.thumbnail((max(shape), max(shape)))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
