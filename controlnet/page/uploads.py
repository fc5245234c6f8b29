"""Files that visitors send: as paths on the server, from the upload folder alone, and with errors in
their words.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from controlnet.conditions import ConditionError
from controlnet.generation.request import RequestError, short_repr
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
    # anew where an event updates properties of this component: events may only give it values.
    picture.preprocess = _path_or_url  # type: ignore[method-assign]
    return picture


def _path_or_url(payload: ImageData | None) -> str | None:
    if payload is None:
        return None
    return payload.url if payload.url and payload.url.startswith("data:") else payload.path


def is_uploaded(path: str) -> bool:
    """Whether a path names a file that came through this server: one in its upload folder.

    A file's name there holds a hash of its content, so that nobody guesses another visitor's. Examples are
    copied there when they are shown. Nothing outside the folder is looked at, so the answer for it does not
    tell what exists.
    """
    named = get_upload_folder()
    real, place = Path(os.path.realpath(named)), Path(os.path.normpath(path))
    try:
        inside = place.is_relative_to(named) or place.is_relative_to(real)
        return inside and Path(os.path.realpath(place)).is_relative_to(real) and place.is_file()
    except (OSError, ValueError):  # a null byte, or a name that is too long
        return False


def still_there(file: Any) -> str | None:
    """The path of a file that the browser remembers, where it is still here."""
    path = file.get("path") if isinstance(file, dict) else None
    return path if isinstance(path, str) and is_uploaded(path) else None


def opened(path: str | None) -> BinaryIO:
    """An uploaded file under the person's own name for it, which errors repeat, not the server's.

    Programs may send a ``data:`` URL in the place of a path.

    Raises:
        RequestError: nothing was sent, the file is gone, or it is none that was sent to this server.
    """
    if path is None:
        raise RequestError("There is no picture yet: give one.")
    is_data = path.startswith("data:")
    if not is_data and not is_uploaded(path):
        raise RequestError("The picture is not one that was uploaded here: upload it first.")
    try:
        content = base64.b64decode(path.partition(",")[2]) if is_data else Path(path).read_bytes()
    except ValueError as error:
        raise RequestError(f"The picture's data: URL is damaged ({error}).") from error
    except OSError:
        raise RequestError("The picture is no longer on the server: give it again.") from None
    file = io.BytesIO(content)
    file.name = "picture" if is_data else Path(path).name
    return file


def sent(file: Any) -> BinaryIO:
    """`opened` for a file inside of a JSON object: as ``/upload`` answers it, or as gradio's clients write
    it.
    """
    if isinstance(file, dict):
        url = file.get("url")
        file = url if isinstance(url, str) and url.startswith("data:") else file.get("path")
    if not isinstance(file, str):
        raise RequestError(f"A file must be a path that /upload answered, got {short_repr(file)}.")
    return opened(file)


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
