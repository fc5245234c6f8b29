"""What can be done with a result: look at it, compare it, take it further. Functions behind buttons."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from controlnet.generation.grid import AXES
from controlnet.generation.png import save_png
from controlnet.generation.request import RequestError
from controlnet.generation.result import Result
from controlnet.page import view
from controlnet.page.links import link_fragment
from controlnet.page.uploads import picture_of
from controlnet.pictures import PictureError

VARIED = tuple(name for name in AXES if name != "seed")
_SLUG = 40  # characters of the prompt in a file's name


@dataclass(eq=False)
class Batch:
    """Pictures of which each has a request of its own: the results, one picture each, and what the gallery
    shows of them.
    """

    results: list[Result] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)


def chosen(batch: Batch | None, event: gr.SelectData) -> tuple[int, Any]:
    """A click in the gallery: which picture of the result it is, and in a batch the result too."""
    if batch is None or event.index >= len(batch.results):
        return event.index, gr.skip()
    return 0, batch.results[event.index]


def gallery_items(result: Result) -> list[tuple[str, str]]:
    """The pictures as files that carry their request, named by seed and prompt, with their captions."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)  # where gradio serves and deletes files
    folder.mkdir(parents=True)
    items = []
    for index, picture in enumerate(result.pictures):
        path = folder / f"{file_stem(result, index)}.png"
        save_png(path, picture, result.metadata(index))
        items.append((str(path), view.caption(result, index)))
    return items


def file_stem(result: Result, index: int) -> str:
    """A file's name without its ending: ``7_a-red-house-by-a-lake``; in a batch of one seed with a number."""
    words = re.sub(r"[^a-z0-9]+", "-", result.request.prompt.lower())[:_SLUG].strip("-")
    number = f"_{index + 1}" if len(set(result.seeds)) < len(result.seeds) else ""
    return f"{result.seeds[index]}{number}_{words or 'picture'}"


def buttons(result: Result | None) -> tuple[Any, ...]:
    """Which of the buttons under a result have a meaning: seed, input, link, and the marks of departures."""
    there = gr.update(interactive=result is not None)
    marks = result is not None and any(score.departs is not None for score in result.scores)
    return there, there, there, gr.update(interactive=marks)


def compare(
    result: Result | None, index: int, departures: bool, input_image: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """The two sides of the slider: the source (or else the hint), and the result, marked where it departs."""
    if result is None:
        return None
    index = min(index, len(result.pictures) - 1)
    right = result.pictures[index]
    departs = result.scores[index].departs if result.scores else None
    if departures and departs is not None:
        right = view.mark_departures(right, departs)
    left = result.shown
    begun = result.request.source
    if (input_image or begun is not None) and not departures:
        source = _readable(input_image) if begun is None else begun
        if source is not None and same_aspect(source, result.hint):
            size = result.hint.shape[1::-1]
            left = np.asarray(Image.fromarray(source).resize(size, Image.Resampling.LANCZOS))
    return left, right


def link(result: Result | None) -> str:
    """The fragment of the address that repeats the result."""
    if result is None:
        return ""
    return link_fragment(result.request, result.packed_hint, result.model, result.packed_further)


def use_seed(result: Result | None, index: int, batch: Batch | None = None) -> tuple[Any, ...]:
    """The seed that gives a picture again, the number of images, whether each has its own, what to expect;
    and of a batch, whose pictures differ in more than that, the settings of `VARIED`.
    """
    others = (gr.skip(),) * len(VARIED)
    if result is None:
        return (gr.skip(),) * 4 + others
    index, request = min(index, len(result.seeds) - 1), result.request
    if batch is not None:
        others = tuple(getattr(request, name) for name in VARIED)
    if request.per_sample_seeds or request.num_samples == 1:
        which = f"Seed {result.seeds[index]}" + (" and the settings of this picture" if batch else "")
        text = view.message_html(f"{which}: Generate gives this picture again.")
        return result.seeds[index], 1, gr.skip(), text, *others
    text = (
        f"Seed {request.seed}, shared by {request.num_samples} images: this one is number {index + 1} again."
    )
    return request.seed, request.num_samples, False, view.message_html(text), *others


def use_as_input(result: Result | None, index: int, input_image: Any) -> tuple[Any, ...]:
    """A result as the next picture; its hint is to be detected anew."""
    picture = input_image
    if result is not None:
        picture = result.pictures[min(index, len(result.pictures) - 1)]
    return picture, None, None, None, None


def same_aspect(picture: np.ndarray, hint: np.ndarray) -> bool:
    """True where a picture may lie under a hint: rounding to multiples of 64 bends the aspect a little."""
    (h, w), (height, width) = picture.shape[:2], hint.shape[:2]
    return abs(np.log(w / h) - np.log(width / height)) < 0.2


def _readable(path: str) -> np.ndarray | None:
    """A visitor's picture, or None where it is none: that was said when it was first used."""
    try:
        return picture_of(path)
    except (PictureError, RequestError):
        return None
