"""The map editor: shows and edits a map of class indices. The browser's half is ``label_map.js``.

Indices travel, not colours, so that no brush, scaling or compression can blur one class into another.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from annotator.ade20k import CLASSES, PALETTE
from controlnet.generation.request import RequestError
from controlnet.page.editors.class_words import other_words
from controlnet.page.editors.runs import editor_component, pack_runs, picture_url, unpack_runs


def label_map_editor(drawable: Sequence[str] = (), icons: str = "", **options: Any) -> gr.HTML:
    """The component. Its value in events is None, or what ``show_map`` makes and ``edited_map`` reads.

    ``drawable`` names the classes that the model can draw, where those are not all, and ``icons`` is the URL
    of a picture with a square for each of them, side by side.
    """
    places = {name: place for place, name in enumerate(drawable)}
    classes = [
        [name, "#" + bytes(color).hex(), not drawable or name in places, other_words(name), places.get(name)]
        for name, color in zip(CLASSES, PALETTE, strict=True)
    ]
    return editor_component("label_map", classes=classes, icons=icons, **options)


def show_map(labels: np.ndarray, picture: np.ndarray | None = None) -> dict[str, Any]:
    """The editor's value for class indices uint8 ``[H, W]``, with a picture under them: uint8 RGB of
    any size.
    """
    # The id tells a new map from the browser's own edits.
    return {**pack_runs(labels), "id": secrets.token_hex(8), "picture": picture_url(picture, labels.shape)}


def edited_map(value: dict[str, Any] | None) -> np.ndarray | None:
    """Class indices uint8 ``[H, W]`` from the browser, or None where it shows none.

    Raises:
        RequestError: damaged data, or an index without a class.
    """
    if not value:
        return None
    labels = unpack_runs(value)
    if labels.max() >= len(CLASSES):
        raise RequestError(
            f"The edited map holds index {labels.max()}; the last class is {len(CLASSES) - 1}."
        )
    return labels
