"""The sizes of pictures: what a request asks for, and what a detector sees."""

from __future__ import annotations

import numpy as np

from annotator.util import resize_image, resized_shape
from controlnet.generation.request import Request, RequestError, definite


def result_size(request: Request) -> tuple[int, int]:
    """Width and height of the pictures that a request with definite sizes gives, both multiples of 64.

    A hint without a picture keeps its own size where that is one the resolution allows, since rounding the
    sides of a rounded size could end elsewhere.
    """
    height, width = definite(request.hint if request.input_image is None else request.input_image).shape[:2]
    resolution = definite(request.image_resolution)
    short = round(resolution / 64) * 64
    if request.input_image is None and min(height, width) == short and height % 64 == 0 and width % 64 == 0:
        return width, height
    try:
        height, width = resized_shape(height, width, resolution)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return width, height


def resized(picture: np.ndarray, resolution: int) -> np.ndarray:
    """``annotator.util.resize_image`` for pictures that people bring: where it finds no size, a
    RequestError.
    """
    try:
        return resize_image(picture, resolution)
    except ValueError as error:
        raise RequestError(str(error)) from error
