"""The functions behind the page's buttons and behind its API. They know components' values, not the
layout.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from PIL import Image

from annotator.ade20k import CLASSES, colorize
from controlnet.conditions.seg.validator import MapReport, validate_map
from controlnet.generation.generator import Cancelled, GenerationError, Generator, Result, fit_map
from controlnet.generation.png import to_pil
from controlnet.generation.request import Request, RequestError
from controlnet.page import view
from controlnet.page.jobs import Jobs
from controlnet.page.links import link_fragment, read_fragment
from controlnet.page.map_editor import edited_map, show_map
from controlnet.pictures import PictureError, read_picture
from ldm.weights import WeightsError

logger = logging.getLogger(__name__)

EXPECTED = (RequestError, PictureError, GenerationError, WeightsError)
"""Errors whose text is meant for the person at the page."""

_SKY = CLASSES.index("sky")

SETTINGS = (
    "prompt", "a_prompt", "n_prompt", "num_samples", "image_resolution", "detect_resolution", "ddim_steps",
    "guess_mode", "strength", "scale", "seed", "eta",
)  # fmt: skip
"""The original's inputs after the picture, in its order."""


def picture_file(**options: Any) -> gr.Image:
    """A picture that arrives as the file the person chose: gradio would decode it, and lose bit depth and
    alpha.
    """
    picture = gr.Image(type="filepath", format="png", **options)
    # On the object, since gradio writes a .pyi file beside the source of every subclass. It makes the object
    # anew where
    # an event updates properties of this component: events may only give it values.
    picture.preprocess = _path_or_url
    return picture


def _path_or_url(payload: ImageData | None) -> str | None:
    if payload is None:
        return None
    return payload.url if payload.url and payload.url.startswith("data:") else payload.path


def one_line(error: BaseException) -> str:
    """What a person is told: the text of an expected error; of any other only that it happened, and the log
    has it.
    """
    if isinstance(error, EXPECTED):
        return " ".join(str(error).split())
    logger.error("A request failed.", exc_info=error)
    return "Something went wrong on the server; its log says what."


def plain_errors(function: Callable) -> Callable:
    """Turn exceptions into ``gr.Error`` with one readable line."""

    @functools.wraps(function)
    def wrapped(*arguments, **named):
        try:
            return function(*arguments, **named)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(one_line(error), print_exception=False) from None

    return wrapped


def picture_of(path: str | None) -> np.ndarray:
    """An uploaded picture, uint8 RGB ``[H, W, 3]``."""
    return read_picture(_upload(path))


def checked_map(path: str | None) -> MapReport:
    """An uploaded map, repaired."""
    try:
        return validate_map(_upload(path))
    except PictureError:
        raise
    except ValueError as error:
        raise RequestError(str(error)) from error


def _upload(path: str | None) -> BinaryIO:
    """An uploaded file under the person's own name for it, which errors repeat, not the server's.

    Programs may send a ``data:`` URL in the place of a path.
    """
    if path is None:
        raise RequestError("There is no picture yet: give one.")
    try:
        if path.startswith("data:"):
            file = io.BytesIO(base64.b64decode(path.partition(",")[2]))
            file.name = "picture"
        else:
            file = io.BytesIO(Path(path).read_bytes())
            file.name = Path(path).name
    except (OSError, ValueError):
        raise RequestError("The picture is no longer on the server: give it again.") from None
    return file


class Actions:
    """What the page can do, with one generator for all its visitors."""

    def __init__(self, generator: Generator):
        self.generator = generator
        self.jobs = Jobs()

    # ---- the API ----

    @plain_errors
    def process(
        self, input_image, prompt, a_prompt, n_prompt, num_samples, image_resolution, detect_resolution,
        ddim_steps, guess_mode, strength, scale, seed, eta,
    ) -> list[Image.Image]:  # fmt: skip
        """Picture and prompt to pictures: the map in colours first, then ``num_samples`` pictures."""
        settings = (
            prompt, a_prompt, n_prompt, num_samples, image_resolution, detect_resolution, ddim_steps,
            guess_mode, strength, scale, seed, eta,
        )  # fmt: skip
        result = self.generator.generate(Request(picture_of(input_image), *settings))
        return [to_pil(result.map), *saved_pictures(result)]

    @plain_errors
    def detect(self, input_image, detect_resolution) -> tuple[Image.Image, list[dict[str, object]]]:
        """Picture to map: the map in colours at the detector's size, and its classes with their shares."""
        labels = self.generator.detect(picture_of(input_image), checked_resolution(detect_resolution))
        return to_pil(colorize(labels)), view.class_shares(labels)

    # ---- the map ----

    @plain_errors
    def detect_map(self, input_image, image_resolution, detect_resolution):
        """Detect for the editor, at the size that the pictures will have."""
        picture = picture_of(input_image)
        labels = self.generator.detect(picture, checked_resolution(detect_resolution))
        labels = fit_map(labels, Request(picture, "", image_resolution=image_resolution))
        return show_map(labels, picture), view.message_html(
            "Detected. Paint on the map if you like, then press Generate.", "done"
        )

    @plain_errors
    def upload_map(self, path, input_image, image_resolution):
        """A map that the person brings: checked, snapped to classes, and the report shown."""
        report = checked_map(path)
        labels = fit_map(
            report.labels, Request(None, "", image_resolution=image_resolution, map=report.labels)
        )
        picture = picture_of(input_image) if input_image else None
        if picture is not None and not _same_aspect(picture, labels):
            picture = None
        return show_map(labels, picture), view.report_html(report)

    @staticmethod
    def empty_map(shape, image_resolution):
        """An empty canvas: all sky."""
        short, long = int(image_resolution), int(round(image_resolution * 1.5 / 64) * 64)
        height, width = {"landscape": (short, long), "portrait": (long, short)}.get(shape, (short, short))
        return show_map(np.full((height, width), _SKY, np.uint8)), view.message_html(
            "An empty canvas: all sky. Paint."
        )

    # ---- running ----

    def run(self, job, input_image, edited, per_sample_seeds, *settings) -> Iterator[tuple]:
        """Generate from the edited map, or where there is none from the picture.

        Yields:
            status HTML, gallery, result HTML, the map for the editor or no change, and the result for the
            session.
        """
        unchanged = gr.skip()
        yield view.message_html("Working …"), unchanged, unchanged, unchanged, unchanged
        try:
            labels = edited_map(edited)
            picture = picture_of(input_image) if labels is None else None
            named = dict(zip(SETTINGS, settings, strict=True))
            request = Request(picture, map=labels, per_sample_seeds=per_sample_seeds, **named)
            work = functools.partial(self.generator.generate, request, measure=True)
            shown = None
            for kind, value in self.jobs.run(job, work):
                if kind == "step":
                    step, preview = value
                    shown = shown if preview is None else preview
                    yield view.progress_html(step, shown), unchanged, unchanged, unchanged, unchanged
                else:
                    editor = show_map(value.labels, picture) if labels is None else unchanged
                    yield (
                        view.message_html("Done.", "done"),
                        gallery_items(value),
                        view.result_html(value),
                        editor,
                        value,
                    )
        except Cancelled as stopped:
            yield view.message_html(str(stopped)), unchanged, unchanged, unchanged, unchanged
        except Exception as error:
            yield view.message_html(one_line(error), "error"), unchanged, unchanged, unchanged, unchanged

    # ---- after a run ----

    @staticmethod
    def compare(result: Result | None, index: int, departures: bool, input_image):
        """The two sides of the slider: the source (or else the map), and the result, marked where it
        departs.
        """
        if result is None:
            return None
        index = min(index, len(result.pictures) - 1)
        right = result.pictures[index]
        if departures and result.adherence:
            right = view.mark_departures(right, result.adherence[index].departs)
        left = result.map
        if input_image and not departures:
            source = picture_of(input_image)
            if _same_aspect(source, result.labels):
                left = np.asarray(
                    Image.fromarray(source).resize(result.labels.shape[::-1], Image.Resampling.LANCZOS)
                )
        return left, right

    @staticmethod
    def link(result: Result | None) -> str:
        """The fragment of the address that repeats the result."""
        return "" if result is None else link_fragment(result.request, result.labels)

    @staticmethod
    def seed_of(result: Result | None, index: int) -> int:
        """The seed of a picture."""
        return -1 if result is None else result.seeds[min(index, len(result.seeds) - 1)]

    @staticmethod
    def use_as_input(result: Result | None, index: int, input_image):
        """A result as the next picture; its map is to be detected anew."""
        return input_image if result is None else result.pictures[min(index, len(result.pictures) - 1)], None

    @plain_errors
    def restore(self, fragment: str):
        """The settings of a link, for the components: twelve of the original, own seeds, the editor, and the
        status.
        """
        if not fragment.strip("#"):
            return [gr.skip()] * (len(SETTINGS) + 3)
        settings, labels = read_fragment(fragment)
        editor = gr.skip() if labels is None else show_map(labels)
        text = "From a link. Press Generate to repeat its picture" + (
            "." if labels is not None else ", with its source."
        )
        return [
            *(settings[name] for name in SETTINGS),
            settings["per_sample_seeds"],
            editor,
            view.message_html(text),
        ]


def saved_pictures(result: Result) -> list[Image.Image]:
    """The pictures, each carrying its request; gradio writes them to PNG with it."""
    return [to_pil(picture, result.metadata(index)) for index, picture in enumerate(result.pictures)]


def gallery_items(result: Result) -> list[tuple[Image.Image, str]]:
    """The pictures with their captions."""
    return [(picture, view.caption(result, index)) for index, picture in enumerate(saved_pictures(result))]


def checked_resolution(resolution: Any) -> int:
    """A detection resolution that ``Request`` would take."""
    return Request(np.zeros((1, 1, 3), np.uint8), "", detect_resolution=resolution).detect_resolution


def _same_aspect(picture: np.ndarray, labels: np.ndarray) -> bool:
    """True where a picture may lie under a map: rounding to multiples of 64 bends the aspect a little."""
    (h, w), (height, width) = picture.shape[:2], labels.shape
    return abs(np.log(w / h) - np.log(width / height)) < 0.2
