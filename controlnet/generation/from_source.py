"""Pictures from a picture: a canvas of the source, extended on some sides, and what of it is painted anew.

All of it is arithmetic on uint8 arrays; what samplers make of it is in `controlnet.generation.passes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from controlnet.generation.checks import (
    RANGES,
    RequestError,
    check_shape,
    checked_picture,
    short_repr,
)
from controlnet.generation.sizes import Place, fits, result_size, source_place

if TYPE_CHECKING:
    from controlnet.generation.request import Request

SIDES = ("left", "top", "right", "bottom")
MOST_OUTPAINT = 1024
"""Pixels that a side may be extended by."""

_BLURS = (4.0, 32.0)  # least and greatest sigma, in pixels, over a canvas's new area


@dataclass(frozen=True, eq=False)
class Canvas:
    """What a picture is made from.

    ``picture`` is uint8 RGB ``[H, W, 3]``: the source, its new area filled. ``painted`` is float32 ``[H, W]``
    in [0, 1], the share of the new picture in each pixel of the result, or None where nothing is kept for
    sure: there is no mask.
    """

    picture: np.ndarray
    painted: np.ndarray | None


# ---- checks ----


def checked_source(request: Request) -> dict[str, Any]:
    """The fields of a request that speak of a source, as they are used.

    Raises:
        RequestError: what cannot be, in one sentence.
    """
    outpaint = checked_outpaint(request.outpaint)
    if request.image_resolution is not None and request.second_pass > 1:
        side, largest = round(request.image_resolution * request.second_pass), RANGES["image_resolution"][1]
        if side > largest:
            raise RequestError(
                f"second_pass {request.second_pass:g} of image_resolution {request.image_resolution} is "
                f"{side} pixels, above the largest short side of {largest}."
            )
    if request.source is None:
        if request.mask is not None:
            raise RequestError("There is a mask but no source: a mask says what of a source is painted anew.")
        if outpaint:
            raise RequestError("outpaint extends a source, and there is none: give one.")
        return {"outpaint": outpaint}
    source = checked_picture(request.source, "source")
    if request.mask is not None:
        check_mask(request.mask, source.shape[:2])
    return {"outpaint": outpaint, "source": source}


def checked_outpaint(outpaint: Any) -> dict[str, int]:
    """Pixels by side, in the order of `SIDES`, without zeros.

    Raises:
        RequestError: no such object, another side, or a number out of range.
    """
    if not isinstance(outpaint, Mapping) or set(outpaint) - set(SIDES):
        raise RequestError(
            f"outpaint must be an object of pixels by {', '.join(SIDES)}, got {short_repr(outpaint)}."
        )
    for side, pixels in outpaint.items():
        whole = isinstance(pixels, int | np.integer) and not isinstance(pixels, bool)
        if not whole or not 0 <= pixels <= MOST_OUTPAINT:
            raise RequestError(
                f"outpaint {side} must be a whole number of pixels from 0 to {MOST_OUTPAINT}, got "
                f"{short_repr(pixels)}."
            )
    return {side: int(outpaint[side]) for side in SIDES if outpaint.get(side)}


def read_outpaint(text: str) -> dict[str, int]:
    """``left=64,bottom=128`` -> pixels by side; nothing is no side.

    Raises:
        RequestError: another text.
    """
    pairs = [part.partition("=") for part in text.replace(" ", "").split(",") if part]
    if not all(pixels.isdigit() for _, _, pixels in pairs):
        raise RequestError(f"outpaint must be like left=64,bottom=128, got {short_repr(text)}.")
    return checked_outpaint({side: int(pixels) for side, _, pixels in pairs})


def check_mask(mask: Any, shape: tuple[int, ...]) -> None:
    """Refuse a mask that is none of a source of that shape, or paints nothing.

    Raises:
        RequestError: it is one.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 2:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else short_repr(mask)
        raise RequestError(f"mask must be a uint8 array [H, W], 255 where it is painted anew, got {got}.")
    check_shape("mask", mask)
    check_fits("mask", mask, shape[0], shape[1], "the source")
    if not mask.any():
        raise RequestError("The mask is empty: paint white (255) what is to be drawn anew.")


def check_fits(name: str, array: np.ndarray, height: int, width: int, what: str) -> None:
    """Refuse a picture, hint or mask of another aspect.

    Raises:
        RequestError: it has one.
    """
    if not fits(array.shape, (height, width)):
        got = f"{array.shape[1]}x{array.shape[0]}"
        raise RequestError(f"{name} is {got} pixels and {what} {width}x{height}: bring one of that shape.")


# ---- the canvas ----


def make_canvas(request: Request, width: int | None = None, height: int | None = None) -> Canvas:
    """The canvas of a request with a source and definite sizes, at the size of its first pass or another."""
    assert request.source is not None
    first = source_place(request)
    place = first if width is None or height is None else first.scaled_to(width, height)
    picture = extended(_resized(request.source, place.inner_width, place.inner_height), place)
    if request.mask is None and place.is_whole:
        return Canvas(picture, None)
    mask = np.full((place.height, place.width), 255, np.uint8)
    inner = np.zeros((1, 1), np.uint8) if request.mask is None else request.mask
    mask[_inside(place)] = cv2.resize(
        inner, (place.inner_width, place.inner_height), interpolation=cv2.INTER_NEAREST
    )
    return Canvas(picture, feathered(mask, request.feather * place.width / first.width))


def extended(picture: np.ndarray, place: Place) -> np.ndarray:
    """A picture on its canvas: uint8 RGB ``[h, w, 3]`` -> ``[H, W, 3]``. Its border goes on over the new
    area, blurred.
    """
    if place.is_whole:
        return picture
    right = place.width - place.left - place.inner_width
    bottom = place.height - place.top - place.inner_height
    canvas = cv2.copyMakeBorder(picture, place.top, bottom, place.left, right, cv2.BORDER_REPLICATE)
    sigma = min(max(max(place.left, place.top, right, bottom) / 4, _BLURS[0]), _BLURS[1])
    canvas = cv2.GaussianBlur(canvas, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    canvas[_inside(place)] = picture
    return canvas


def feathered(mask: np.ndarray, feather: float) -> np.ndarray:
    """The share of the new picture in each pixel: uint8 ``[H, W]`` -> float32 ``[H, W]`` in [0, 1].

    1 where the mask is 255; outside it falls to 0 over ``feather`` pixels, and is 0 beyond.
    """
    share = mask.astype(np.float32) / 255
    if feather <= 0 or not (mask >= 128).any():
        return share
    distance = cv2.distanceTransform((mask < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.maximum(share, np.clip(1 - distance / (feather + 1), 0, 1)).astype(np.float32)


def blended(pictures: np.ndarray, kept: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """``kept`` where nothing is painted, to the last bit, ``pictures`` where all is, and both between.

    Args:
        pictures, kept: uint8 RGB ``[N, H, W, 3]``, of which either may hold one picture for all.
        painted: float32 ``[H, W]`` in [0, 1].
    """
    share, below = painted[..., None], kept.astype(np.float32)
    return np.rint(below + share * (pictures - below)).clip(0, 255).astype(np.uint8)


def kept_latents(painted: np.ndarray) -> np.ndarray | None:
    """Which latents stay those of the source: float32 ``[H, W]`` -> ``[H / 8, W / 8]``, 1 where no pixel of a
    latent's square is painted, else 0. None where none stays.

    A latent is never half kept: the mean of two noises has less of it than the samplers expect.
    """
    height, width = painted.shape
    keep = painted.reshape(height // 8, 8, width // 8, 8).max(axis=(1, 3)) == 0
    return keep.astype(np.float32) if keep.any() else None


def hint_picture(request: Request) -> tuple[np.ndarray, int]:
    """The picture that the hint of a request with definite sizes is found in, and the short side of the
    result: without an ``input_image`` of another kind that is the whole canvas.
    """
    picture, source = request.input_image, request.source
    assert request.image_resolution is not None
    if picture is not None and (source is None or not np.array_equal(picture, source)):
        return picture, request.image_resolution
    canvas = make_canvas(request).picture
    return canvas, min(canvas.shape[:2])


def for_canvas(request: Request, resolution: int, guidance: float) -> Request:
    """With a canvas that grows, a hint that is not of its size is that of the source: it gives way to what is
    found on the whole canvas.

    Args:
        resolution, guidance: of the model, see `Request.for_model`.
    """
    if request.source is None or not request.outpaint or request.hint is None:
        return request
    width, height = result_size(request.for_model(resolution, guidance))
    if request.hint.shape[:2] == (height, width):
        return request
    return replace(request, hint=None, input_image=None)


def _inside(place: Place) -> tuple[slice, slice]:
    rows = slice(place.top, place.top + place.inner_height)
    return rows, slice(place.left, place.left + place.inner_width)


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    grows = width * height > picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA)
