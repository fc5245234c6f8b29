"""Prompts for classes on the page: one field, folded away, with the classes of the map to click on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from annotator.ade20k import CLASSES, colorize
from controlnet.generation.class_prompts import checked_class_prompts, read_class_map, typed
from controlnet.generation.request import Request
from controlnet.page.browser import browser_part
from controlnet.page.events import INSTANT, emit
from controlnet.page.panels import Panel
from controlnet.page.uploads import opened, picture_file, still_there


class ClassPromptsPanel(Panel):
    """The prompts, and a map for conditions whose hint is none.

    Args:
        fold: unfolds where prompts come back.
        text: ``house: red brick; sky: stormy evening``.
        class_map: a map in colours or indices.
    """

    def __init__(self, fold: gr.Accordion, text: gr.Textbox, class_map: gr.Image):
        self.inputs = [text, class_map]
        self.outputs = [fold, text, class_map]

    def fields(self, values: Sequence[Any], input_image: str | None) -> dict[str, Any]:
        """``class_prompts``, and ``class_map`` where there is one and a prompt for it."""
        text, class_map = values
        prompts = checked_class_prompts(text or "")
        if class_map is None or not prompts:
            return {"class_prompts": prompts}
        return {"class_prompts": prompts, "class_map": read_class_map(opened(class_map))}

    def filled(self, request: Request | None) -> Sequence[Any]:
        if request is None or not request.class_prompts:
            return gr.update(open=False), "", None
        labels = request.class_map
        return gr.update(open=True), typed(request.class_prompts), None if labels is None else _shown(labels)

    def kept(self, values: Sequence[Any]) -> Sequence[Any]:
        text, class_map = values
        if not isinstance(text, str):
            raise ValueError("prompts for classes of another version")
        return gr.update(open=bool(text)), text, still_there(class_map)


def _shown(labels: np.ndarray) -> np.ndarray:
    """A map as a picture that reads as itself: in colours, but as indices where two classes share one."""
    return labels if (labels == CLASSES.index("skyscraper")).any() else colorize(labels)


def lay_out_class_prompts() -> ClassPromptsPanel:
    """The field, folded away."""
    with gr.Accordion("Prompts for classes", open=False, elem_id="class-prompts") as fold:
        text = gr.Textbox(
            "",
            label="Class: words",
            info="Each prompt reaches the pixels of its class alone, beside the whole prompt.",
            placeholder="house: a red house; boat: a yellow boat",
            lines=2,
            elem_id="class-words",
        )
        browser_part("classes", ("roving",), elem_id="classes")
        with gr.Accordion("A map beside another condition", open=False):
            class_map = picture_file(
                label="Map of the classes, where segmentation does not steer",
                sources=["upload", "clipboard"],
                height=140,
                buttons=[],
                elem_id="class-map",
            )
    text.change(None, text, js=emit("class-words"), **INSTANT)
    return ClassPromptsPanel(fold, text, class_map)
