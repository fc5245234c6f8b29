"""The drawing board: shows and edits lines, white on black for the network, dark on paper for the eye.

The browser's half is ``draw.js``.
"""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr
import numpy as np

from controlnet.page.editors.runs import editor_component, pack_runs, picture_url, unpack_runs


def drawing_board(**options: Any) -> gr.HTML:
    """The component. Its value in events is None, or what ``show_drawing`` makes and ``edited_drawing``
    reads.
    """
    return editor_component("draw", **options)


def show_drawing(condition: str, hint: np.ndarray, picture: np.ndarray | None = None) -> dict[str, Any]:
    """The board's value for a hint uint8 ``[H, W]`` of a condition, with a picture under it: uint8 RGB."""
    return {
        **pack_runs(hint),
        "id": secrets.token_hex(8),
        "condition": condition,
        "picture": picture_url(picture, hint.shape),
    }


def edited_drawing(value: dict[str, Any] | None, condition: str) -> np.ndarray | None:
    """The hint uint8 ``[H, W]`` from the browser, or None where it shows none of this condition.

    Raises:
        RequestError: damaged data.
    """
    if not value or value.get("condition") != condition:
        return None
    return unpack_runs(value)
