"""What a person asks for: one picture or map, a prompt, and the numbers that steer the sampling."""

from __future__ import annotations

import base64
import dataclasses
import math
import random
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from annotator.ade20k import CLASSES
from annotator.util import HWC3, MAX_PIXELS

DEFAULT_A_PROMPT = "best quality, extremely detailed"
DEFAULT_N_PROMPT = (
    "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality"
)

RANGES: dict[str, tuple[float, float]] = {
    "num_samples": (1, 64),
    "image_resolution": (64, 2048),
    "detect_resolution": (64, 2048),
    "ddim_steps": (1, 1000),
    "strength": (0.0, 2.0),
    "scale": (0.0, 30.0),
    "seed": (-1, 2**32 - 1),
    "eta": (0.0, 1.0),
}
"""Lowest and highest value of each number. The front ends offer narrower ranges, those of the original."""

_INTEGERS = ("num_samples", "image_resolution", "detect_resolution", "ddim_steps", "seed")
_TEXTS = ("prompt", "a_prompt", "n_prompt")
_SWITCHES = ("guess_mode", "per_sample_seeds")
_ARRAYS = ("input_image", "map")


class RequestError(ValueError):
    """A request that cannot be carried out as it stands; the text says which value is wrong and what is
    wanted.
    """


@dataclass(frozen=True, eq=False)
class Request:
    """The thirteen inputs of the original's ``process``, in its order and with its defaults, and two more.

    Args:
        input_image: uint8 ``[H, W]``, ``[H, W, 1 | 3 | 4]``, RGB in [0, 255]; None where ``map`` stands for
            it.
        prompt: what to draw; ``a_prompt`` is appended after a comma.
        a_prompt: added prompt.
        n_prompt: negative prompt, the unconditional text of classifier-free guidance.
        num_samples: pictures of one batch.
        image_resolution: short side of the result in pixels; both sides become multiples of 64.
        detect_resolution: short side of the picture that the detector sees.
        ddim_steps: sampling steps.
        guess_mode: control only the conditional half, and weaken it towards the first blocks.
        strength: factor on all control outputs.
        scale: guidance scale.
        seed: -1 draws one in [0, 65535].
        eta: 0 is deterministic DDIM, 1 adds DDPM's noise.
        map: uint8 ``[h, w]`` ADE20K class indices, used instead of a run of the detector.
        per_sample_seeds: picture ``k`` of a batch is what ``seed + k`` gives alone, whatever the batch size.
            Off, the batch shares one stream of noise, as in the original.

    Raises:
        RequestError: a value of the wrong type, outside ``RANGES``, or not finite; an empty or oversized
            picture.
    """

    input_image: np.ndarray | None
    prompt: str
    a_prompt: str = DEFAULT_A_PROMPT
    n_prompt: str = DEFAULT_N_PROMPT
    num_samples: int = 1
    image_resolution: int = 512
    detect_resolution: int = 512
    ddim_steps: int = 20
    guess_mode: bool = False
    strength: float = 1.0
    scale: float = 9.0
    seed: int = -1
    eta: float = 0.0
    map: np.ndarray | None = None
    per_sample_seeds: bool = False

    def __post_init__(self):
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"{name} must be text, got {getattr(self, name)!r}.")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise RequestError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        for name in RANGES:
            object.__setattr__(self, name, _checked_number(name, getattr(self, name)))
        if self.per_sample_seeds and self.seed + self.num_samples - 1 > RANGES["seed"][1]:
            raise RequestError(
                f"seed {self.seed} and {self.num_samples} pictures with a seed each would exceed "
                f"{RANGES['seed'][1]}."
            )
        if self.input_image is None and self.map is None:
            raise RequestError("There is neither an input_image nor a map: give one of them.")
        if self.input_image is not None:
            object.__setattr__(self, "input_image", _checked_picture(self.input_image))
        if self.map is not None:
            object.__setattr__(self, "map", _checked_map(self.map))

    def with_seed(self) -> Request:
        """The same request with a definite seed: -1 is replaced by a random one in [0, 65535]."""
        if self.seed != -1:
            return self
        # The system's own source: the global one may have been seeded by anyone, and two users must not share
        # a seed.
        return dataclasses.replace(self, seed=random.SystemRandom().randint(0, 65535))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture."""
        return tuple(self.seed + k if self.per_sample_seeds else self.seed for k in range(self.num_samples))

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        return {name: getattr(self, name) for name in setting_names()}


def setting_names() -> tuple[str, ...]:
    """Names of the request's fields that are no arrays, in order."""
    return tuple(field.name for field in dataclasses.fields(Request) if field.name not in _ARRAYS)


def request_from_settings(
    settings: dict[str, Any], input_image: np.ndarray | None = None, map: np.ndarray | None = None
) -> Request:
    """Build a request from a JSON object of settings; what is left out has its default.

    Raises:
        RequestError: unknown names, a missing prompt, or values that ``Request`` refuses.
    """
    unknown = sorted(set(settings) - set(setting_names()))
    if unknown:
        raise RequestError(f"Unknown settings {', '.join(unknown)}; known are {', '.join(setting_names())}.")
    if "prompt" not in settings:
        raise RequestError("The setting prompt is missing.")
    return Request(input_image=input_image, map=map, **settings)


def pack_map(labels: np.ndarray) -> dict[str, Any]:
    """Class indices uint8 ``[H, W]`` -> a small JSON object; ``unpack_map`` is its inverse."""
    packed = base64.urlsafe_b64encode(
        zlib.compress(np.ascontiguousarray(labels, dtype=np.uint8).tobytes(), 9)
    )
    return {"width": labels.shape[1], "height": labels.shape[0], "labels": packed.decode("ascii")}


def unpack_map(packed: Any) -> np.ndarray:
    """The inverse of ``pack_map`` for data that anyone may have written: never inflates more than the size it
    states.

    Raises:
        RequestError: not such an object, or one whose size and data disagree.
    """
    try:
        width, height, text = int(packed["width"]), int(packed["height"]), packed["labels"]
        if not (width > 0 and height > 0 and width * height <= MAX_PIXELS):
            raise ValueError(f"{width}x{height} pixels")
        data = zlib.decompressobj().decompress(base64.urlsafe_b64decode(text), width * height + 1)
        if len(data) != width * height:
            raise ValueError(f"data for another size than {width}x{height}")
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise RequestError(f"The stored map cannot be read ({error}).") from error
    return _checked_map(np.frombuffer(data, dtype=np.uint8).reshape(height, width))


def _checked_number(name: str, value: Any) -> int | float:
    low, high = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise RequestError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be from {low:g} to {high:g}, got {value}.")
    if name in _INTEGERS:
        if value != int(value):
            raise RequestError(f"{name} must be a whole number, got {value}.")
        return int(value)
    return float(value)


def _checked_picture(picture: Any) -> np.ndarray:
    if not isinstance(picture, np.ndarray):
        raise RequestError(f"input_image must be a uint8 array [H, W, 3], got {type(picture).__name__}.")
    if picture.size == 0:
        raise RequestError(f"input_image is empty: its shape is {list(picture.shape)}.")
    if picture.ndim in (2, 3) and picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        height, width = picture.shape[:2]
        raise RequestError(
            f"input_image has {width}x{height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels."
        )
    try:
        return HWC3(picture)
    except ValueError as error:
        raise RequestError(f"input_image: {error}") from error


def _checked_map(labels: Any) -> np.ndarray:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8 or labels.ndim != 2:
        got = (
            f"{labels.dtype} {list(labels.shape)}"
            if isinstance(labels, np.ndarray)
            else type(labels).__name__
        )
        raise RequestError(f"map must be uint8 class indices [H, W], got {got}.")
    if labels.size == 0 or labels.size > MAX_PIXELS:
        raise RequestError(
            f"map must have 1 pixel to {MAX_PIXELS // 1_000_000} megapixels, got {list(labels.shape)}."
        )
    if labels.max() >= len(CLASSES):
        raise RequestError(
            f"map must hold class indices from 0 to {len(CLASSES) - 1}, got {int(labels.max())}."
        )
    return labels
