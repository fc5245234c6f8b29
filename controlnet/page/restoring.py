"""Everything comes back: from a link, from the browser's store after a reload, from a picture of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import numpy as np

from controlnet.generation.png import read_metadata, request_of
from controlnet.generation.request import Request, RequestError
from controlnet.page import view
from controlnet.page.actions import Actions
from controlnet.page.links import misses_source, read_fragment
from controlnet.page.panels import split
from controlnet.page.settings import SETTINGS, fitted_to_page
from controlnet.page.uploads import is_uploaded, one_line, opened

_MAX_WORK = 20_000_000  # characters: a map of 1024x1024 pixels takes 4 million at most, its picture as many


class Restoring:
    """Functions that fill the page. Each returns the condition, the values of ``SETTINGS``, own seeds, every
    option, what fills the panels, the picture, the four values of the hint, the gallery, and the status.
    """

    def __init__(self, actions: Actions):
        self.actions = actions
        self.generator = actions.generator

    def opened(self, event: gr.EventData) -> Sequence[Any]:
        """What the page was opened with: the part of the address behind ``#``, or what was kept of it."""
        sent = _sent(event)
        if sent.get("link"):
            return self._told(self._of_link, str(sent["link"]))
        return self._told(self._of_work, str(sent.get("work")))

    def dropped(self, event: gr.EventData) -> Sequence[Any]:
        """Pictures of ours, as paths of uploaded files: the first tells everything."""
        sent = _sent(event)
        return self._told(self._of_pictures, sent.get("paths"), bool(sent.get("whole")))

    def _told(self, function: Any, *values: Any) -> Sequence[Any]:
        try:
            return function(*values)
        except Exception as error:
            panels = sum(len(panel.outputs) for panel in self.actions.panels)
            unchanged = len(SETTINGS) + len(self.actions.options) + panels + 8
            return *(gr.skip(),) * unchanged, view.message_html(one_line(error), "error")

    def _of_link(self, fragment: str) -> list[Any]:
        request, hint, model = read_fragment(fragment)
        settings, difference = fitted_to_page(request.settings(), model, self.generator)
        text = "From a link. Press Generate to repeat its picture"
        text += "." if hint is not None else ", with its source."
        if misses_source(request):
            text = "From a link, without the picture that it began from: give that under From a picture."
        text = f"From a link. {difference}" if difference else text
        return self._filled(request, settings, hint, text)

    def _of_pictures(self, paths: Sequence[str], whole: bool) -> list[Any]:
        """``whole`` asks for the batch, else one picture of it is meant where it has a seed of its own."""
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise RequestError("There is no picture: drop one that was saved here.")
        files = [opened(path) for path in paths]
        content = read_metadata(files[0])
        request = request_of(content)
        settings = request.settings()
        if request.per_sample_seeds and not whole:
            settings |= {"seed": content.get("seed", request.seed), "num_samples": 1}
        settings, difference = fitted_to_page(settings, str(content.get("model", "")), self.generator)
        text = f"Everything is as it was for this picture. {difference}".strip()
        return self._filled(request, settings, request.hint, text, list(paths))

    def panels_filled(self, request: Request | None) -> list[Any]:
        """What fills the panels for a request, or empties them."""
        return [value for panel in self.actions.panels for value in panel.filled(request)]

    def _filled(
        self,
        request: Request,
        settings: Mapping[str, Any],
        hint: np.ndarray | None,
        text: str,
        gallery: list | None = None,
    ) -> list[Any]:
        options = [
            settings["options"].get(name, gr.skip()) if owner == settings["condition"] else gr.skip()
            for owner, name in self.actions.options
        ]
        shown: Sequence[Any] = (gr.skip(),) * 4
        if hint is not None:
            condition = self.generator.condition(settings["condition"])
            shown = self.actions.show(condition, self._fitted(request, settings, hint))
        return [
            settings["condition"], *(settings[name] for name in SETTINGS), settings["per_sample_seeds"],
            *options, *self.panels_filled(request), gr.skip(), *shown, gallery or gr.skip(),
            view.message_html(text),
        ]  # fmt: skip

    def _fitted(self, request: Request, settings: Mapping[str, Any], hint: np.ndarray) -> np.ndarray:
        """A hint at the size of the pictures; that of a second pass stays the best that there is."""
        if request.second_pass > 1:
            return hint
        source = None if misses_source(request) else request.source
        outpaint = {} if source is None else request.outpaint
        plain = {**settings, "class_prompts": {}, "outpaint": outpaint}  # a class map is its panel's matter
        return self.generator.hint(Request(None, hint=hint, source=source, **plain))

    def _of_work(self, text: str) -> list[Any]:
        """What ``desk.js`` keeps: the components' own values, which their own checks look at when they are
        used.
        """
        try:
            if len(text) > _MAX_WORK:
                raise ValueError(f"{len(text)} characters")
            work = json.loads(text)
            values, picture = list(work["values"]), work.get("picture")
            condition, settings, rest = values[0], values[1 : len(SETTINGS) + 1], values[len(SETTINGS) + 1 :]
            panels = self.actions.panels
            end = len(rest) - sum(len(panel.inputs) for panel in panels)
            own_seeds, *options, label_map, drawing = rest[:end]
            _check_values(condition, settings, own_seeds, options, len(self.actions.options))
            more = [
                value
                for panel, own in zip(panels, split(panels, rest[end:]), strict=True)
                for value in panel.kept(own)
            ]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RequestError(f"What the browser kept cannot be read ({error}).") from None
        there = isinstance(picture, str) and is_uploaded(picture)
        return [
            condition, *settings, own_seeds, *options, *more, picture if there else gr.skip(), label_map,
            drawing, gr.skip(), gr.skip(), gr.skip(), gr.skip(),
        ]  # fmt: skip


def _sent(event: gr.EventData) -> Mapping[str, Any]:
    """What came with an event; it may come from anyone."""
    data = event._data
    return data if isinstance(data, Mapping) else {}


def _check_values(
    condition: Any, settings: Sequence[Any], own: Any, options: Sequence[Any], count: int
) -> None:
    """Raise a RequestError for values that no request would take: of another version, or made up."""
    named = dict(zip(SETTINGS, settings, strict=True))
    if len(options) != count or not all(isinstance(value, int | float) for value in options):
        raise ValueError("options of another version")
    standing_in = np.zeros((64, 64, 3), np.uint8)
    Request(standing_in, condition=condition, per_sample_seeds=own, **named)
