"""How large pictures become: sides that are multiples of 64, a canvas around a source, a second pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from annotator.util import MAX_PIXELS, resize_image, resized_shape
from controlnet.generation.checks import MAX_ASPECT, RequestError

if TYPE_CHECKING:
    from controlnet.generation.request import Request

_MULTIPLE = 64


@dataclass(frozen=True)
class Place:
    """Where the source lies on a canvas, in pixels: the canvas, the source's corner, and its size there."""

    width: int
    height: int
    left: int
    top: int
    inner_width: int
    inner_height: int

    def scaled_to(self, width: int, height: int) -> Place:
        """The same place on a canvas of another size."""
        x, y = width / self.width, height / self.height
        left, right = round(self.left * x), round((self.left + self.inner_width) * x)
        top, bottom = round(self.top * y), round((self.top + self.inner_height) * y)
        return Place(width, height, left, top, right - left, bottom - top)

    @property
    def is_whole(self) -> bool:
        """Whether the source is all of the canvas."""
        return (self.inner_width, self.inner_height) == (self.width, self.height)


def sized(shape: tuple[int, ...], resolution: int, keep: bool = True) -> tuple[int, int]:
    """Height and width, multiples of 64, of a picture that is brought to a short side of ``resolution``.

    Args:
        keep: a size that the resolution allows stays as it is, since rounding the sides of a rounded size
            could end elsewhere.

    Raises:
        RequestError: there is no such size.
    """
    height, width = shape[:2]
    short = round(resolution / _MULTIPLE) * _MULTIPLE
    if keep and min(height, width) == short and height % _MULTIPLE == 0 and width % _MULTIPLE == 0:
        return height, width
    try:
        return resized_shape(height, width, resolution)
    except ValueError as error:
        raise RequestError(str(error)) from error


def source_place(request: Request) -> Place:
    """Where the source of a request with definite sizes lies on its canvas.

    The source is brought to the resolution first; ``outpaint`` is added to that. What a side then lacks to a
    multiple of 64 is added as well, right and at the bottom, or left and at the top where only they grow.

    Raises:
        RequestError: a canvas that is too large or too long.
    """
    assert request.source is not None and request.image_resolution is not None
    inner_height, inner_width = sized(request.source.shape, request.image_resolution)
    left, right = grown(inner_width, request.outpaint.get("left", 0), request.outpaint.get("right", 0))
    top, bottom = grown(inner_height, request.outpaint.get("top", 0), request.outpaint.get("bottom", 0))
    width, height = left + inner_width + right, top + inner_height + bottom
    _check_canvas(width, height, "outpaint makes")
    return Place(width, height, left, top, inner_width, inner_height)


def grown(side: int, before: int, after: int) -> tuple[int, int]:
    """What is added before and after a side so that it becomes a multiple of 64."""
    more = -(side + before + after) % _MULTIPLE
    return (before, after + more) if after or not before else (before + more, after)


def result_size(request: Request) -> tuple[int, int]:
    """Width and height of the pictures that the first pass of a request with definite sizes gives, both
    multiples of 64.

    A hint without a picture keeps its own size where that is one the resolution allows, and so does a source.
    """
    assert request.image_resolution is not None
    if request.source is not None:
        place = source_place(request)
        return place.width, place.height
    shaped = request.hint if request.input_image is None else request.input_image
    assert shaped is not None
    height, width = sized(shaped.shape, request.image_resolution, keep=request.input_image is None)
    return width, height


def final_size(request: Request) -> tuple[int, int]:
    """Width and height after the second pass: those of the first times ``second_pass``, to the nearest
    multiples of 64.

    Raises:
        RequestError: too many pixels.
    """
    if request.second_pass == 1:
        return result_size(request)
    sides = (side * request.second_pass / _MULTIPLE for side in result_size(request))
    width, height = (int(np.round(side)) * _MULTIPLE for side in sides)
    _check_canvas(width, height, f"second_pass {request.second_pass:g} makes")
    return width, height


def _check_canvas(width: int, height: int, what: str) -> None:
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise RequestError(f"{what} {width}x{height} pixels, more than {limit} megapixels: ask for less.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RequestError(
            f"{what} {width}x{height} pixels; the long side may be {MAX_ASPECT} times the short one: "
            "ask for less."
        )


def fits(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether an array of one shape ``[H, W, ...]`` may be brought to another: rounding to multiples of 64
    bends the aspect a little.
    """
    return abs(math.log(shape[1] / shape[0]) - math.log(other[1] / other[0])) < 0.2


def resized(picture: np.ndarray, resolution: int) -> np.ndarray:
    """``annotator.util.resize_image`` for pictures that people bring: where it finds no size, a
    RequestError.
    """
    try:
        return resize_image(picture, resolution)
    except ValueError as error:
        raise RequestError(str(error)) from error
