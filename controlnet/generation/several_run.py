"""What a run makes of the several controls of a request: their hints, and what the networks take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from controlnet.conditions import Condition, Hint, find_condition
from controlnet.generation.checks import RequestError
from controlnet.generation.request import Request, default_detect_resolution, definite
from controlnet.generation.sampling import WHOLE_RUN, Control, control_scales
from controlnet.generation.several import HINT_GUIDANCE, FurtherControl, said_of

if TYPE_CHECKING:
    from cldm.cldm import ControlNet

_ASPECT = 0.2  # logarithm of how far a picture may be from the result's shape: rounding to 64 pixels bends it


def check_run(request: Request, width: int, height: int, steps: int) -> None:
    """Refuse what only shows where the size of the result and the steps of the run are known.

    Args:
        width, height: of the result, in pixels.
        steps: that the sampler takes.

    Raises:
        RequestError: a window in which no step lies, or a picture, hint or region of another shape.
    """
    windows = [(request.control_start, request.control_end), *((c.start, c.end) for c in request.further)]
    for index, (start, end) in enumerate(windows, start=-1):
        if not any(start <= step / steps and (step + 1) / steps <= end for step in range(steps)):
            whose = f"Further control {index + 1}" if index >= 0 else "The control"
            raise RequestError(
                f"{whose} would never act: none of {steps} steps lies between {start:g} and {end:g} of the "
                "run. Take more steps or a longer part."
            )
    brought: list[tuple[str, np.ndarray | None]] = [("The region", request.region)]
    for index, control in enumerate(request.further):
        picture = control.input_image if control.hint is None else control.hint
        name = f"The {'picture' if control.hint is None else 'hint'} of further control {index + 1}"
        brought += [(name, picture), (f"The region of further control {index + 1}", control.region)]
    for name, array in brought:
        if array is not None:
            h, w = array.shape[:2]
            if abs(math.log(w / h) - math.log(width / height)) >= _ASPECT:
                raise RequestError(f"{name} is {w}x{h} pixels, and the result {width}x{height}: crop it.")


def completed(
    request: Request,
    steps: Callable[[], int],
    size: Callable[[], tuple[int, int]],
    find: Callable[[Request], Hint],
    condition: Callable[[str], Condition],
) -> Request:
    """The request, checked against the run, with the hint of each further control at the size of the result.

    Args:
        request: with definite sizes.
        steps: how many the sampler takes.
        size: width and height of the result.
        find: the hint that a request asks for.
        condition: by name.

    Raises:
        RequestError: as `check_run`, and where a hint cannot be found.
    """
    window = (request.control_start, request.control_end)
    if not request.further and request.region is None and window == WHOLE_RUN:
        return request
    width, height = size()
    check_run(request, width, height, steps())
    further = []
    for index, control in enumerate(request.further):
        with said_of(index, control.condition):
            hint = control.hint if control.hint is not None else find(request_for(request, control))
            if request.second_pass == 1:  # else each pass takes its size of it
                hint = condition(control.condition).fit(hint, height, width)
            further.append(dataclasses.replace(control, hint=hint))
    return dataclasses.replace(request, further=tuple(further))


def request_for(request: Request, control: FurtherControl) -> Request:
    """A request whose hint is that of a further control, found in its own picture or that of the request."""
    changes: dict[str, Any] = {"condition": control.condition, "options": control.options, "hint": None}
    changes |= {"class_prompts": {}, "class_map": None}  # which may be about the hint of the first
    if control.input_image is not None:
        changes["input_image"] = control.input_image
    detect = default_detect_resolution(find_condition(control.condition), definite(request.image_resolution))
    return dataclasses.replace(request, **changes, detect_resolution=detect, region=None, further=())


def acting(request: Request) -> list[FurtherControl]:
    """The further controls that do anything."""
    return [control for control in request.further if control.strength > 0]


def run_controls(
    request: Request,
    picture: np.ndarray,
    networks: Sequence[ControlNet | None],
    outputs: int,
    condition: Callable[[str], Condition],
) -> list[Control]:
    """The controls of a run: the first of the request, and those that act beside it.

    Args:
        request: of `completed`.
        picture: what the network sees of the first hint, uint8 RGB ``[H, W, 3]``.
        networks: one for each; None is the model's own.
        outputs: of each network.
        condition: by name.
    """
    (height, width), further = picture.shape[:2], acting(request)
    pictures = [picture]
    for control in further:
        used = condition(control.condition)
        pictures.append(used.control(used.fit(definite(control.hint), height, width)))
    first = FurtherControl(
        request.condition,
        strength=request.strength,
        start=request.control_start,
        end=request.control_end,
        mode=request.control_mode,
        region=request.region,
    )
    controls = []
    for control, seen, network in zip((first, *further), pictures, networks, strict=True):
        mode = "control" if request.guess_mode else control.mode
        scales, share = control_factors(mode, control.strength, outputs, definite(request.scale))
        window = (control.start, control.end)
        controls.append(Control(seen, scales, share, network, window, control.region))
    return controls


def control_factors(mode: str, strength: float, outputs: int, scale: float) -> tuple[list[float], float]:
    """The factors of a control's outputs, and its share in the unconditional half of guidance, in [0, 1].

    With half of the control there, guidance at scale 2 adds half of what the control does once more. The mode
    "closer" has the share that adds as much at every scale: share + scale (1 - share) = `HINT_GUIDANCE`. At
    smaller scales than that the control is left out there.

    Args:
        mode: one of `MODES`.
        strength: of the control.
        outputs: how many it has.
        scale: of guidance.
    """
    scales = control_scales(strength, outputs, mode in ("prompt", "control"))
    if mode == "control":
        return scales, 0.0
    if mode == "closer" and scale > 1:
        return scales, max(0.0, (scale - HINT_GUIDANCE) / (scale - 1))
    return scales, 1.0


def throughout(request: Request) -> dict[str, Any]:
    """Changes that make all controls of a request act in every step, for a run of one."""
    further = tuple(dataclasses.replace(control, start=0.0, end=1.0) for control in request.further)
    return {"control_start": 0.0, "control_end": 1.0, "further": further}
