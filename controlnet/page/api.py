"""The page's endpoints for programs: ``/process`` as the original has it, ``/generate`` and ``/detect``
for all.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from annotator.ade20k import CLASSES, PALETTE
from controlnet.conditions import Condition
from controlnet.generation.generator import Generator
from controlnet.generation.grid import Grid, axis_of_object, generate_grid, note_of
from controlnet.generation.packing import read_hint
from controlnet.generation.png import to_pil
from controlnet.generation.request import Request, RequestError, request_from_settings
from controlnet.generation.result import Result
from controlnet.generation.several_files import from_settings
from controlnet.generation.sheet import compose_sheet
from controlnet.page.settings import MAX_CELLS
from controlnet.page.uploads import opened, picture_of, sent

BEFORE_DETECTION = ("prompt", "a_prompt", "n_prompt", "num_samples", "image_resolution")
AFTER_DETECTION = ("ddim_steps", "guess_mode", "strength", "scale", "seed", "eta")


def process_settings(condition: type[Condition]) -> tuple[str, ...]:
    """The original's inputs after the picture, in its order: a detector's resolution only where there
    is a network.
    """
    detection = () if condition.detect_resolution is None else ("detect_resolution",)
    return (*BEFORE_DETECTION, *detection, *AFTER_DETECTION)


def process_options(condition: type[Condition]) -> tuple[str, ...]:
    """The condition's own inputs, which come last."""
    return tuple(option.name for option in condition.options if option.original)


def make_process(generator: Generator, condition: type[Condition]) -> Callable[..., list[Image.Image]]:
    """The original's ``process`` for one condition, with its inputs by name and order."""
    settings, options = process_settings(condition), process_options(condition)
    names = ("input_image", *settings, *options)

    def process(*values: Any) -> list[Image.Image]:
        """Picture and prompt to pictures: the hint first, then ``num_samples`` pictures.

        The last input, ``hint``, is a picture used instead of detection; it may be left out.
        """
        given = dict(zip((*names, "hint"), values, strict=True))
        picture, hint = brought(generator, condition.name, given["input_image"], given["hint"])
        request = Request(
            picture,
            hint=hint,
            condition=condition.name,
            options={name: given[name] for name in options},
            **{name: given[name] for name in settings},
        )
        result = generator.generate(request)
        return [to_pil(result.shown), *saved_pictures(result)]

    # Gradio names the endpoint's inputs after the function's.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    process.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(inspect.Parameter(name, kind) for name in names), inspect.Parameter("hint", kind, default=None)]
    )
    return process


def make_generate(generator: Generator, default: str) -> Callable[..., list[Image.Image]]:
    """Any condition by name, with all settings as one JSON object."""

    def generate(
        input_image, prompt, condition=default, options=None, hint=None, settings=None
    ) -> list[Image.Image]:
        """Picture (or hint, or source) and prompt to pictures: the hint first, then the pictures.

        ``condition`` is a name, ``options`` its options, ``hint`` a picture used instead of detection,
        ``settings`` any other setting of a request, such as ``{"seed": 1, "num_samples": 2}``; these four
        may be left out.
        ``settings`` may also hold ``source``, a file to begin from, ``mask``, a file that is white where that
        is painted anew, ``region``, a file, and ``further``, a list of objects
        with ``condition`` and perhaps files as ``image``, ``hint`` and ``region``; then the hints of these
        follow the first. ``{"class_prompts": {"house": "red brick"}}`` needs a ``class_map``, a file, where
        the condition is not seg.
        """
        name = condition or default
        others, fields, _ = from_settings(_object(settings, "settings"), sent)
        picture, given = brought(generator, name, input_image, hint, needed="source" not in fields)
        own = {"prompt": prompt or "", "condition": name, "options": _object(options, "options")}
        result = generator.generate(request_from_settings({**others, **own}, picture, given, **fields))
        return [*map(to_pil, result.all_shown), *saved_pictures(result)]

    return generate


def make_grid(
    generator: Generator, default: str
) -> Callable[..., tuple[Image.Image, list[tuple[Image.Image, str]]]]:
    """Any condition with two axes, as JSON objects."""

    def grid(
        input_image, prompt, rows, columns=None, condition=default, options=None, hint=None, settings=None
    ) -> tuple[Image.Image, list[tuple[Image.Image, str]]]:
        """Picture (or hint) and two axes to one labelled picture, and the pictures in it with their labels.

        ``rows`` and ``columns`` are objects of one setting and its values, such as ``{"seed": [1, 2, 3]}``;
        the settings are prompt, seed, strength, scale, ddim_steps and sampler. What follows ``rows`` may be
        left out, and is as in ``/generate``.
        """
        name = condition or default
        others, fields, _ = from_settings(_object(settings, "settings"), sent)
        picture, given = brought(generator, name, input_image, hint, needed="source" not in fields)
        own = {"prompt": prompt or "", "condition": name, "options": _object(options, "options")}
        base = request_from_settings({**others, **own}, picture, given, **fields)
        axes = [axis_of_object(_object(axis, side)) for axis, side in ((rows, "rows"), (columns, "columns"))]
        wanted = Grid(*axes)
        wanted.check_count(MAX_CELLS)
        requests = wanted.requests(base.for_model(generator.resolution, generator.guidance))
        cells = list(generate_grid(generator, wanted, requests))
        done = {(cell.row, cell.column): cell.result.pictures[0] for cell in cells}
        note = note_of(wanted, requests[0].settings(), generator.name)
        sheet = compose_sheet(done, wanted.rows.labels, wanted.columns.labels, note)
        return to_pil(sheet.picture), [
            (saved_pictures(cell.result)[0], wanted.label(cell.row, cell.column)) for cell in cells
        ]

    return grid


def make_detect(
    generator: Generator, default: str
) -> Callable[..., tuple[Image.Image, list[dict[str, Any]]]]:
    """Detection alone, for any condition."""

    def detect(
        input_image: Any, detect_resolution: Any, condition: str = default, options: Any = None
    ) -> tuple[Image.Image, list[dict[str, Any]]]:
        """Picture to hint: what the network would see, at the detector's size; of a map its classes
        with shares.
        """
        used = generator.condition(condition or default)
        resolution = checked_resolution(detect_resolution)
        hint = generator.detect(picture_of(input_image), resolution, used.name, _object(options, "options"))
        return to_pil(used.control(hint)), class_shares(hint) if used.name == "seg" else []

    return detect


def brought(
    generator: Generator, condition: str, picture: str | None, hint: str | None, needed: bool = True
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Picture and hint of a request from the files sent; with a hint there need be no picture, nor where
    none is ``needed``.

    Raises:
        RequestError, ConditionError, PictureError: files that cannot be used, or neither is there.
    """
    if hint is None:
        return picture_of(picture) if picture is not None or needed else None, None
    given = read_hint(generator.condition(condition), opened(hint)).hint
    return None if picture is None else picture_of(picture), given


def saved_pictures(result: Result) -> list[Image.Image]:
    """The pictures, each carrying its request; gradio writes them to PNG with it."""
    return [to_pil(picture, result.metadata(index)) for index, picture in enumerate(result.pictures)]


def checked_resolution(resolution: Any) -> int | None:
    """A detection resolution that ``Request`` would take; None stays None."""
    return Request(np.zeros((1, 1, 3), np.uint8), "", detect_resolution=resolution).detect_resolution


def class_shares(labels: np.ndarray) -> list[dict[str, Any]]:
    """The classes of a map, largest first: index, name, colour and share in [0, 1]. Ready for JSON."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
    return [
        {
            "index": int(index),
            "class": CLASSES[index],
            "color": PALETTE[index].tolist(),
            "share": round(float(counts[index] / labels.size), 4),
        }
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]


def _object(value: Any, name: str) -> dict[str, Any]:
    """A JSON object, also where it arrives as text or not at all."""
    if value in (None, ""):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} must be a JSON object ({error}).") from None
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be a JSON object, got {type(value).__name__}.")
    return value
