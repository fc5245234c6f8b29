"""The functions behind the page's buttons. They know components' values, not the layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from annotator.ade20k import CLASSES
from controlnet.conditions import Condition, find_condition
from controlnet.generation.from_source import for_canvas
from controlnet.generation.generator import Generator
from controlnet.generation.packing import read_hint
from controlnet.generation.request import Request
from controlnet.generation.several_files import from_settings
from controlnet.generation.watcher import Cancelled
from controlnet.page import view
from controlnet.page.editors.draw import edited_drawing, show_drawing
from controlnet.page.editors.label_map import edited_map, show_map
from controlnet.page.examples import Example
from controlnet.page.jobs import Job, Line, Pace
from controlnet.page.panels import Panel, split
from controlnet.page.results import gallery_items, same_aspect
from controlnet.page.settings import SETTINGS
from controlnet.page.uploads import one_line, opened, picture_of
from controlnet.pictures import read_picture

_SKY = CLASSES.index("sky")

Shown = tuple[Any, Any, Any, Any]
"""Values for the label map, the drawing board, the plain picture of a hint, and the hint kept for it."""


def told(unchanged: int) -> Callable[[Callable], Callable]:
    """Errors become the last value, the status, so that they stay on the page; the ``unchanged`` values
    before it are left as they are.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*arguments: Any) -> Sequence[Any]:
            try:
                return function(*arguments)
            except Exception as error:
                return *(gr.skip(),) * unchanged, view.message_html(one_line(error), "error")

        return wrapped

    return decorate


class Actions:
    """What the page can do, with one generator for all its visitors.

    Args:
        generator: makes the pictures.
        options: (condition, name) of every option, in the order in which their values arrive.
        examples: in the order in which they are shown.
        panels: what adds to requests, in the order in which its values arrive, after the options.
    """

    def __init__(
        self,
        generator: Generator,
        options: Sequence[tuple[str, str]],
        examples: Sequence[Example] = (),
        panels: Sequence[Panel] = (),
    ):
        self.generator = generator
        self.options = tuple(options)
        self.examples = tuple(examples)
        self.panels = tuple(panels)
        self.line = Line(lambda: generator.arrival.is_there)
        self.pace = Pace()

    def own_options(self, condition: str, values: Sequence[Any]) -> dict[str, Any]:
        """Of all options' values those of one condition, by name."""
        pairs = zip(self.options, values, strict=True)
        return {name: value for (owner, name), value in pairs if owner == condition}

    # ---- the hint ----

    def show(self, condition: Condition, hint: np.ndarray, picture: np.ndarray | None = None) -> Shown:
        """A hint in the editor of its condition; the other editors are emptied."""
        if condition.editor == "label_map":
            return show_map(hint, picture), None, None, None
        if condition.editor == "draw":
            return None, show_drawing(condition.name, hint, picture), None, None
        return None, None, condition.show(hint), (condition.name, hint)

    @staticmethod
    def brought(condition: str, label_map: Any, drawing: Any, kept: Any) -> np.ndarray | None:
        """The hint that the page shows for a condition, or None where it shows none."""
        editor = find_condition(condition).editor
        if editor == "label_map":
            return edited_map(label_map)
        if editor == "draw":
            return edited_drawing(drawing, condition)
        return kept[1] if kept and kept[0] == condition else None

    def detect_hint(self, job, *inputs):
        """Detect for the editor, at the size that the pictures will have."""
        job = job or Job()
        self.line.enter(job)
        yield *(gr.skip(),) * 4, view.message_html("Detecting …", "running")
        try:
            yield told(4)(self._detected)(*inputs)
        finally:
            self.line.leave(job)

    def _detected(self, condition, input_image, image_resolution, detect_resolution, *options):
        picture, used = picture_of(input_image), self.generator.condition(condition)
        request = Request(
            picture, "", image_resolution=image_resolution, detect_resolution=detect_resolution,
            condition=condition, options=self.own_options(condition, options),
        )  # fmt: skip
        hint = self.generator.hint(request)
        remarks = used.remarks(hint, picture)
        world = self.generator.world
        text = " ".join(remarks) or f"Detected. {view.what_next(used, world)}"
        kind = "note" if remarks or world else "done"
        return *self.show(used, hint, picture), view.message_html(text, kind)

    @told(4)
    def upload_hint(self, condition, path, input_image, image_resolution):
        """A hint that the person brings: checked, mended where that is sure, and the report shown."""
        used = self.generator.condition(condition)
        report = read_hint(used, opened(path))
        request = Request(None, "", image_resolution=image_resolution, hint=report.hint, condition=condition)
        hint = self.generator.hint(request)
        picture = picture_of(input_image) if input_image else None
        if picture is not None and not same_aspect(picture, hint):
            picture = None
        return *self.show(used, hint, picture), view.report_html(report)

    @told(4)
    def empty_hint(self, condition, shape, image_resolution):
        """An empty canvas: all sky, or an empty sheet."""
        short, long = int(image_resolution), int(round(image_resolution * 1.5 / 64) * 64)
        height, width = {"landscape": (short, long), "portrait": (long, short)}.get(shape, (short, short))
        used = self.generator.condition(condition)
        if used.editor == "label_map":
            hint, text = np.full((height, width), _SKY, np.uint8), "An empty canvas: all sky. Paint."
        else:
            hint, text = np.zeros((height, width), np.uint8), "An empty sheet. Draw."
        Request(None, "", hint=hint, condition=condition)  # refuses sizes that no run takes
        return *self.show(used, hint), view.message_html(text)

    # ---- running ----

    def loading(self):
        """What is said while the model is being loaded, and whether to ask again in a second."""
        is_there = self.generator.arrival.is_there
        return "" if is_there else view.loading_html(), gr.update(active=not is_there)

    @staticmethod
    def begin(before: Job | None):
        """A new job in the place of the one before; Cancel can be pressed, and the old status is gone."""
        if before is not None:
            before.cancel()
        return Job(), gr.update(interactive=True), ""

    @staticmethod
    def cancel(job: Job | None):
        """The visitor is free at once; what computes ends with the step it is at."""
        if job is not None:
            job.cancel()
        return view.message_html("Cancelled."), gr.update(interactive=False)

    @staticmethod
    def refused(job: Job | None):
        """A job that the queue did not take waits no longer; the Cancel button."""
        if job is not None:
            job.cancel()
        return gr.update(interactive=False)

    def wait(self, job: Job | None):
        """The visitor's place in the line, and whether to ask again in a second."""
        if job is None or job.is_over or job.begun:
            return "", gr.update(active=False)
        return view.place_html(*self.line.place(job), job.waited), gr.update(active=True)

    @staticmethod
    def can_cancel(job: Job | None):
        """The Cancel button, as it should be now."""
        return gr.update(interactive=job is not None and not job.is_over)

    def request(
        self,
        condition: str,
        input_image: Any,
        label_map: Any,
        drawing: Any,
        kept: Any,
        per_sample_seeds: bool,
        *values: Any,
    ) -> Request:
        """What the page asks for: the hint that it shows, or where there is none the picture, and all
        settings.

        Raises:
            RequestError, PictureError: values that cannot be used.
        """
        hint = self.brought(condition, label_map, drawing, kept)
        own, more = self._of_panels(values)
        fields: dict[str, Any] = {}
        for panel, given in zip(self.panels, more, strict=True):
            fields |= panel.fields(given, input_image)
        needed = hint is None and (input_image is not None or "source" not in fields)
        picture = picture_of(input_image) if needed else None
        settings = self.settings(condition, per_sample_seeds, own)
        own_sizes = (self.generator.resolution, self.generator.guidance)
        return for_canvas(Request(picture, hint=hint, **settings, **fields), *own_sizes)

    def _of_panels(self, values: Sequence[Any]) -> tuple[Sequence[Any], list[list[Any]]]:
        """The values of ``SETTINGS`` and of every option, and those of each panel."""
        count = len(SETTINGS) + len(self.options)
        return values[:count], split(self.panels, values[count:])

    def settings(self, condition: str, per_sample_seeds: bool, values: Sequence[Any]) -> dict[str, Any]:
        """All settings of a request by name, from the values of ``SETTINGS`` and of every option, which
        come first.
        """
        count = len(SETTINGS) + len(self.options)
        return {
            **dict(zip(SETTINGS, values, strict=False)),
            "per_sample_seeds": per_sample_seeds,
            "condition": condition,
            "options": self.own_options(condition, values[len(SETTINGS) : count]),
        }

    def run(self, job: Job | None, *asked: Any) -> Iterator[tuple]:
        """Generate; ``asked`` are the values that ``request`` takes.

        Yields:
            status HTML, gallery, result HTML, the four values of the hint or no change, and the result.
        """
        same = (gr.skip(),) * 7
        job = job or Job()
        self.line.enter(job)
        yield view.message_html("Working …", "running"), *same
        try:
            yield from self._follow(job, self.request(*asked))
        except Cancelled as stopped:
            yield view.message_html(str(stopped)), *same
        except Exception as error:
            yield view.message_html(one_line(error), "error"), *same
        finally:
            self.line.leave(job)

    def _follow(self, job: Job, request: Request) -> Iterator[tuple]:
        unchanged = gr.skip()
        shown = None
        work = functools.partial(self.generator.generate, request, measure=True)
        for kind, value in job.follow(work):
            if kind == "step":
                step, preview = value
                shown = shown if preview is None else preview
                yield view.progress_html(step, shown), *((unchanged,) * 7)
                continue
            self.pace.learn(value)
            hints = (unchanged,) * 4
            if request.hint is None:
                used = self.generator.condition(request.condition)
                found = value.hint if value.best_hint is None else value.best_hint
                hints = self.show(used, found, request.input_image)
            yield (
                view.done_html(value), gallery_items(value), view.result_html(value), *hints, value,
            )  # fmt: skip

    def example(self, index: int):
        """What an example puts into the page.

        Returns:
            the condition, the picture, the four values of the hint, what fills the panels, the prompt, and
            the status.
        """
        return told(7 + sum(len(panel.outputs) for panel in self.panels))(self._example)(index)

    def _example(self, index: int):
        example = self.examples[index]
        shown: Sequence[Any] = (None,) * 4
        picture, hint = read_picture(example.picture), None
        if example.hint is not None:
            condition = self.generator.condition(example.condition)
            hint = condition.read(example.hint).hint
            shown = self.show(condition, hint, picture)
        settings, pictures, _ = from_settings(example.settings, Path)
        request = Request(picture, "", hint=hint, condition=example.condition, **settings, **pictures)
        filled = [value for panel in self.panels for value in panel.filled(request)]
        return example.condition, str(example.picture), *shown, *filled, example.prompt, gr.skip()
