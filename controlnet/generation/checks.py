"""What a request's numbers and pictures may be, and the sentences for those that may not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from annotator.util import HWC3, MAX_PIXELS

RANGES: dict[str, tuple[float, float]] = {
    "num_samples": (1, 64),
    "image_resolution": (64, 2048),
    "detect_resolution": (64, 2048),
    "ddim_steps": (1, 1000),
    "strength": (0.0, 2.0),
    "scale": (0.0, 30.0),
    "seed": (-1, 2**32 - 1),
    "eta": (0.0, 1.0),
    "guidance_start": (0.0, 1.0),
    "guidance_end": (0.0, 1.0),
    "control_start": (0.0, 1.0),
    "control_end": (0.0, 1.0),
    "denoise": (0.0, 1.0),
    "feather": (0, 256),
    "second_pass": (1.0, 2.0),
    "second_denoise": (0.0, 1.0),
}
"""Lowest and highest value of each number. The front ends offer narrower ranges, those of the original."""

MAX_ASPECT = 8
"""How many times as long as the short side the long side of a picture or hint may be."""

INTEGERS = ("num_samples", "image_resolution", "detect_resolution", "ddim_steps", "seed", "feather")


class RequestError(ValueError):
    """A request that cannot be carried out as it stands; the text says which value is wrong and what is
    wanted.
    """


def checked_number(name: str, value: Any) -> int | float:
    """The value as a setting of that name has it: finite and within its range, an int where it counts."""
    low, high = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise RequestError(f"{name} must be a number, got {short_repr(value)}.")
    if isinstance(value, int) and not low <= value <= high:  # too many digits would not even become a float
        raise RequestError(f"{name} must be from {low:g} to {high:g}, got {short_repr(value)}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be from {low:g} to {high:g}, got {value}.")
    if name in INTEGERS:
        if value != int(value):
            raise RequestError(f"{name} must be a whole number, got {value}.")
        return int(value)
    return float(value)


def short_repr(value: Any) -> str:
    """A value for an error's text, cut where a stranger made it long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of about {int(value.bit_length() * 0.30103)} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def checked_picture(picture: Any, name: str = "input_image") -> np.ndarray:
    """A picture, of that name in errors, as uint8 RGB ``[H, W, 3]``."""
    if not isinstance(picture, np.ndarray):
        raise RequestError(f"{name} must be a uint8 array [H, W, 3], got {type(picture).__name__}.")
    if picture.ndim in (2, 3):
        check_shape(name, picture)
    elif picture.size == 0:
        raise RequestError(f"{name} is empty: its shape is {list(picture.shape)}.")
    try:
        return HWC3(picture)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error


def check_shape(name: str, array: np.ndarray) -> None:
    """Not empty, not too large, not too long."""
    height, width = array.shape[:2]
    if array.size == 0:
        raise RequestError(f"{name} is empty: its shape is {list(array.shape)}.")
    if height * width > MAX_PIXELS:
        raise RequestError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels."
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise RequestError(
            f"{name} is {width}x{height} pixels; the long side may be {MAX_ASPECT} times the short one: "
            "crop it."
        )
