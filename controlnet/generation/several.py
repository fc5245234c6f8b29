"""Several controls in one request: what each says, and what cannot be.

The modes are those of webui's ControlNet extension, the windows those of diffusers. What a run makes of them:
`controlnet.generation.several_run`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from controlnet.conditions import ConditionError, find_condition
from controlnet.generation.checks import (
    RequestError,
    check_shape,
    checked_number,
    checked_picture,
    short_repr,
)

if TYPE_CHECKING:
    from controlnet.generation.request import Request

MODES = {
    "balanced": "Balanced",
    "prompt": "The prompt is more important",
    "control": "The control is more important",
    "closer": "Closer to the hint",
}
"""How a control stands to the prompt. "prompt" weakens it towards the first blocks, as guess mode does;
"control" does so too, and leaves it out of the unconditional half: it is guess mode. "closer" guides towards
the hint as well as towards the prompt, see `HINT_GUIDANCE`."""

HINT_GUIDANCE = 1.5
"""How often what a control does counts in the mode "closer", at any scale of guidance: 1 is as it is."""

_GUESSING = ("balanced", "control")
"""The modes that guess mode may take the place of: what nobody chose, and itself."""

MAX_FURTHER = 3
"""Controls beside the first."""


@dataclass(frozen=True, eq=False)
class FurtherControl:
    """A control beside the first of a request.

    Args:
        condition: what it steers by, a name in ``controlnet.conditions.all_conditions()``.
        input_image: uint8 ``[H, W]`` or ``[H, W, 1 | 3 | 4]`` RGB, where its hint is found; None where
            ``hint`` stands for it, or the request's own picture.
        hint: uint8 ``[h, w]`` or ``[h, w, 3]`` as the condition has it.
        options: of the condition, by name.
        strength: factor on its outputs, in [0, 2]; 0 is no control.
        start, end: shares of the sampling steps between which it acts, in [0, 1].
        mode: one of `MODES`.
        region: where in the picture it acts, uint8 ``[h, w]``, 255 for all of it; None is everywhere.

    Raises:
        RequestError: when it becomes part of a request, whose errors say which control is meant.
    """

    condition: str
    input_image: np.ndarray | None = None
    hint: np.ndarray | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    region: np.ndarray | None = None

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, ready for JSON."""
        names = ("condition", "options", "strength", "start", "end", "mode")
        return {name: getattr(self, name) for name in names}


# ---- checks ----


def checked_several(request: Request) -> dict[str, Any]:
    """The fields of a request that speak of windows, modes, regions and further controls, as they are used.

    Raises:
        RequestError: what cannot be, in one sentence.
    """
    _check_window("control_", request.control_start, request.control_end)
    _check_mode("control_mode", request.control_mode)
    if request.region is not None:
        _check_region(request.region)
    if request.guess_mode and request.control_mode not in _GUESSING:
        raise RequestError(
            f"guess_mode is control_mode control, and the request says {request.control_mode}: choose one."
        )
    further = request.further
    if not isinstance(further, list | tuple) or not all(isinstance(each, FurtherControl) for each in further):
        raise RequestError(f"further must be a list of FurtherControl, got {short_repr(further)}.")
    if len(further) > MAX_FURTHER:
        raise RequestError(f"There are {len(further)} further controls; at most {MAX_FURTHER} are taken.")
    return {"further": tuple(_checked(request, k, each) for k, each in enumerate(further))}


def _checked(request: Request, index: int, control: FurtherControl) -> FurtherControl:
    with said_of(index, control.condition):
        if not isinstance(control.condition, str):
            raise RequestError(f"condition must be text, got {short_repr(control.condition)}.")
        if not isinstance(control.options, Mapping):
            raise RequestError(f"options must be an object of numbers, got {short_repr(control.options)}.")
        condition = find_condition(control.condition)
        changes: dict[str, Any] = {
            "options": condition.checked_options(control.options),
            "strength": checked_number("strength", control.strength),
            **_check_window("", control.start, control.end),
        }
        _check_mode("mode", control.mode)
        if request.guess_mode and control.mode not in _GUESSING:
            raise RequestError(
                f"its mode is {control.mode}, and guess_mode is mode control for all: choose one."
            )
        if control.region is not None:
            _check_region(control.region)
        if control.hint is not None:
            check_shape("hint", condition.check(control.hint))
        elif control.input_image is not None:
            changes["input_image"] = checked_picture(control.input_image)
        elif request.input_image is None and request.source is None:
            raise RequestError("it needs an image or a hint, for the request has no picture to find one in.")
        return dataclasses.replace(control, **changes)


@contextmanager
def said_of(index: int, condition: Any) -> Iterator[None]:
    """Errors within say which further control is meant: ``index`` counts from 0."""
    try:
        yield
    except (RequestError, ConditionError) as error:
        name = f" ({condition})" if isinstance(condition, str) and len(condition) < 30 else ""
        raise RequestError(f"Further control {index + 1}{name}: {error}") from error


def _check_window(prefix: str, start: Any, end: Any) -> dict[str, float]:
    window = {"start": start, "end": end}
    for name, value in window.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise RequestError(f"{prefix}{name} must be a number, got {short_repr(value)}.")
        if not 0 <= value <= 1:
            raise RequestError(f"{prefix}{name} must be from 0 to 1, got {short_repr(value)}.")
    if start >= end:
        raise RequestError(
            f"{prefix}start {start:g} is not below {prefix}end {end:g}: the control would never act."
        )
    return {name: float(value) for name, value in window.items()}


def _check_mode(name: str, mode: Any) -> None:
    if not isinstance(mode, str) or mode not in MODES:
        raise RequestError(f"{name} must be one of {', '.join(MODES)}, got {short_repr(mode)}.")


def _check_region(region: Any) -> None:
    if not isinstance(region, np.ndarray) or region.dtype != np.uint8 or region.ndim != 2:
        got = f"{region.dtype} {list(region.shape)}" if isinstance(region, np.ndarray) else short_repr(region)
        raise RequestError(f"region must be a uint8 array [h, w], 255 where the control acts, got {got}.")
    check_shape("region", region)
    if not region.any():
        raise RequestError("region is black throughout: the control would act nowhere.")
