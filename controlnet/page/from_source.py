"""From a picture: a folded part of the page for what a run begins from, what of it is painted anew, how far
its canvas is extended, and a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from controlnet.generation.checks import RANGES
from controlnet.generation.from_source import MOST_OUTPAINT, SIDES
from controlnet.generation.request import Request
from controlnet.generation.result import Result
from controlnet.page import view
from controlnet.page.editors.mask import edited_mask, mask_board, show_mask
from controlnet.page.events import ASIDE, Session
from controlnet.page.links import misses_source
from controlnet.page.panels import Panel
from controlnet.page.uploads import is_uploaded, one_line, picture_file, picture_of

if TYPE_CHECKING:
    from controlnet.page.layout import Parts

SECOND_PASSES = [("None", 1.0), ("1.5 times as large", 1.5), ("Twice as large", 2.0)]
NUMBERS = ("denoise", "feather", *SIDES, "second_pass", "second_denoise")
"""Of the panel's inputs after source and mask, in their order."""


class FromSourcePanel(Panel):
    """What a run begins from.

    Args:
        fold: all of it.
        source: the picture.
        mask: painted over it.
        numbers: by `NUMBERS`.
        buttons: take the page's picture, and the chosen result.
    """

    def __init__(
        self,
        fold: gr.Accordion,
        source: gr.Image,
        mask: gr.HTML,
        numbers: dict[str, Any],
        buttons: tuple[gr.Button, gr.Button],
    ):
        self.fold, self.source, self.mask, self.numbers, self.buttons = fold, source, mask, numbers, buttons
        self.inputs = [source, mask, *numbers.values()]
        self.outputs = [fold, *self.inputs]

    def fields(self, values: Sequence[Any], input_image: str | None) -> dict[str, Any]:
        """The fields of a request that speak of a source, without one only those of the second pass."""
        path, mask, *numbers = values
        named = dict(zip(NUMBERS, numbers, strict=True))
        outpaint = {side: int(named.pop(side)) for side in SIDES}
        if path is None:
            return {name: named[name] for name in ("second_pass", "second_denoise")}
        return {**named, "source": picture_of(path), "mask": edited_mask(mask), "outpaint": outpaint}

    def filled(self, request: Request | None) -> Sequence[Any]:
        """The fold is open for a request that has any of it."""
        if request is None:
            return [gr.update(open=False), None, None, *(self.numbers[name].value for name in NUMBERS)]
        source = None if request.source is None or misses_source(request) else request.source
        numbers = {name: getattr(request, name, None) for name in NUMBERS} | {
            side: request.outpaint.get(side, 0) for side in SIDES
        }
        used = request.source is not None or request.second_pass > 1
        return [
            gr.update(open=used),
            source,
            None if source is None else show_mask(source, request.mask),
            *(numbers[name] for name in NUMBERS),
        ]

    def kept(self, values: Sequence[Any]) -> Sequence[Any]:
        """What the browser kept; a picture that is still on the server lies under the mask."""
        file, mask, *numbers = values
        if len(numbers) != len(NUMBERS) or not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("numbers of another version")
        path = file.get("path") if isinstance(file, dict) else None
        if not isinstance(path, str) or not is_uploaded(path):
            return [gr.skip(), None, None, *numbers]
        return [gr.update(open=True), path, show_mask(picture_of(path), edited_mask(mask)), *numbers]


# ---- layout ----


def lay_out_from_source() -> FromSourcePanel:
    """The fold, closed."""
    with gr.Accordion("From a picture", open=False, elem_id="from-picture") as fold:
        gr.Markdown(
            "Begin from a picture instead of noise. Paint on it to draw a part anew: outside the paint every "
            "pixel is kept. Extend it on any side. Draw the result once more, larger."
        )
        with gr.Row():
            source = picture_file(
                label="Begin from", sources=["upload", "clipboard"], height=140, elem_id="source", buttons=[]
            )
            with gr.Column(min_width=140):
                buttons = (
                    gr.Button("The picture above", size="sm", elem_id="begin-picture"),
                    gr.Button("The chosen result", size="sm", elem_id="begin-result"),
                )
        numbers: dict[str, Any] = {
            "denoise": gr.Slider(
                *RANGES["denoise"], value=Request.denoise, step=0.05, label="Denoise",
                info="0 gives the picture back, 1 keeps little of it",
            )
        }  # fmt: skip
        mask = mask_board(elem_id="mask")
        numbers["feather"] = gr.Slider(
            RANGES["feather"][0], 64, value=Request.feather, step=1, label="Feather",
            info="pixels over which the new fades into what is kept",
        )  # fmt: skip
        with gr.Row():
            for side in SIDES:
                numbers[side] = gr.Number(
                    0, label=f"Extend {side}", precision=0, minimum=0, maximum=MOST_OUTPAINT, step=64,
                    min_width=90,
                )  # fmt: skip
        with gr.Row():
            numbers["second_pass"] = gr.Dropdown(
                SECOND_PASSES, value=1.0, label="Second pass", min_width=140, elem_id="second-pass"
            )
            numbers["second_denoise"] = gr.Slider(
                *RANGES["second_denoise"], value=Request.second_denoise, step=0.05,
                label="Denoise of the second pass", min_width=140,
            )  # fmt: skip
    return FromSourcePanel(fold, source, mask, {name: numbers[name] for name in NUMBERS}, buttons)


# ---- wiring ----


def wire_from_source(parts: Parts, session: Session) -> None:
    """A picture that is given lies under an empty mask; the buttons give the page's own pictures."""
    panel = next(panel for panel in parts.panels if isinstance(panel, FromSourcePanel))
    shown = [panel.mask, parts.status]
    panel.source.input(_under_mask, panel.source, shown, **ASIDE)
    begun = [panel.fold, panel.source, *shown]
    panel.buttons[0].click(_begin_from_picture, parts.input_image, begun, **ASIDE)
    panel.buttons[1].click(_begin_from_result, [session.result, session.chosen], begun, **ASIDE)


def _under_mask(path: str | None) -> tuple[Any, Any]:
    try:
        return None if path is None else show_mask(picture_of(path)), gr.skip()
    except Exception as error:
        return None, view.message_html(one_line(error), "error")


def _begin_from_picture(path: str | None) -> tuple[Any, ...]:
    try:
        picture = picture_of(path)
    except Exception as error:
        return gr.skip(), gr.skip(), gr.skip(), view.message_html(one_line(error), "error")
    return _begun(picture)


def _begin_from_result(result: Result | None, index: int) -> tuple[Any, ...]:
    if result is None:
        return (
            gr.skip(),
            gr.skip(),
            gr.skip(),
            view.message_html("There is no result yet: make one.", "error"),
        )
    return _begun(result.pictures[min(index, len(result.pictures) - 1)])


def _begun(picture: np.ndarray) -> tuple[Any, ...]:
    text = "Runs begin from this picture. Paint on it what is to be drawn anew, or nothing for all of it."
    return gr.update(open=True), picture, show_mask(picture), view.message_html(text)
