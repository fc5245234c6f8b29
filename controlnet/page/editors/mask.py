"""The mask board: paints over a picture what of it is drawn anew. The browser's half is ``mask.js``."""

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from controlnet.page.editors.runs import editor_component, pack_runs, picture_url, unpack_runs

MOST_SIDE = 1024
"""Pixels of a board's long side: the mask of a larger picture is painted smaller."""


def mask_board(**options: Any) -> gr.HTML:
    """The component. Its value in events is None, or what ``show_mask`` makes and ``edited_mask`` reads."""
    return editor_component("mask", **options)


def show_mask(picture: np.ndarray, mask: np.ndarray | None = None) -> dict[str, Any]:
    """The board's value for a picture, uint8 RGB ``[H, W, 3]``, and its mask, uint8 ``[h, w]``, or none."""
    if mask is None:
        height, width = picture.shape[:2]
        scale = min(1.0, MOST_SIDE / max(height, width))
        mask = np.zeros((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8)
    elif max(mask.shape) > MOST_SIDE:
        image = Image.fromarray(mask)
        image.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.NEAREST)
        mask = np.asarray(image)
    return {
        **pack_runs(mask), "id": secrets.token_hex(8), "picture": picture_url(picture, mask.shape),
    }  # fmt: skip


def edited_mask(value: dict[str, Any] | None) -> np.ndarray | None:
    """The mask uint8 ``[H, W]`` from the browser, or None where nothing is painted.

    Raises:
        RequestError: damaged data.
    """
    if not value:
        return None
    mask = unpack_runs(value)
    return mask if mask.any() else None
