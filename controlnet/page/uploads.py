"""Files that visitors send: as paths on the server, from the upload folder alone, and with errors in
their words.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from controlnet.conditions import ConditionError
from controlnet.files import EXAMPLES
from controlnet.generation.request import RequestError
from controlnet.generation.watcher import GenerationError
from controlnet.pictures import PictureError, read_picture
from ldm.weights import WeightsError

logger = logging.getLogger(__name__)

EXPECTED = (RequestError, ConditionError, PictureError, GenerationError, WeightsError)
"""Errors whose text is meant for the person at the page."""


def picture_file(**options: Any) -> gr.Image:
    """A picture that arrives as the file the person chose: gradio would decode it, and lose bit depth
    and alpha.
    """
    picture = gr.Image(type="filepath", format="png", **options)
    # On the object, since gradio writes a .pyi file beside the source of every subclass. It makes the object
    # anew where
    # an event updates properties of this component: events may only give it values.
    picture.preprocess = _path_or_url  # type: ignore[method-assign]
    return picture


def _path_or_url(payload: ImageData | None) -> str | None:
    if payload is None:
        return None
    return payload.url if payload.url and payload.url.startswith("data:") else payload.path


def opened(path: str | None) -> BinaryIO:
    """An uploaded file under the person's own name for it, which errors repeat, not the server's.

    Programs may send a ``data:`` URL in the place of a path.

    Raises:
        RequestError: nothing was sent, the file is gone, or it is none that visitors sent or that ships as
            example.
    """
    if path is None:
        raise RequestError("There is no picture yet: give one.")
    try:
        if path.startswith("data:"):
            file = io.BytesIO(base64.b64decode(path.partition(",")[2]))
            file.name = "picture"
            return file
        place = Path(path).resolve()
        allowed = [Path(get_upload_folder()).resolve(), EXAMPLES.resolve()]
        if not any(place.is_relative_to(folder) for folder in allowed) or not place.is_file():
            raise RequestError("The picture is not one that was uploaded here: upload it first.")
        file = io.BytesIO(place.read_bytes())
        file.name = place.name
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError("The picture is no longer on the server: give it again.") from None
    return file


def picture_of(path: str | None) -> np.ndarray:
    """An uploaded picture, uint8 RGB ``[H, W, 3]``."""
    return read_picture(opened(path))


def one_line(error: BaseException) -> str:
    """What a person is told: the text of an expected error; of any other only that it happened, and the
    log has it.
    """
    if isinstance(error, EXPECTED):
        return " ".join(str(error).split())
    logger.error("A request failed.", exc_info=error)
    return "Something went wrong on the server; its log says what."


def plain_errors(function: Callable) -> Callable:
    """Turn exceptions into ``gr.Error`` with one readable line."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(one_line(error), print_exception=False) from None

    return wrapped
