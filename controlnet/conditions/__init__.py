"""What a picture can be reduced to, to steer a new one: one module for each condition.

A module (or small package) of this folder with a class ``CONDITION`` is a condition; it needs to be named
nowhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import numpy as np

from controlnet.conditions.base import (
    Condition,
    ConditionError,
    Hint,
    HintReport,
    Option,
    Score,
)

__all__ = [
    "DEFAULT",
    "Condition",
    "ConditionError",
    "Hint",
    "HintReport",
    "Option",
    "Score",
    "all_conditions",
    "find_condition",
    "hint_pictures",
]

DEFAULT = "seg"
"""The condition of requests that name none."""


@cache
def all_conditions() -> dict[str, type[Condition]]:
    """The condition classes by name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    classes = [module.CONDITION for module in modules if hasattr(module, "CONDITION")]
    return {condition.name: condition for condition in classes}


def find_condition(name: str) -> type[Condition]:
    """The class of a condition.

    Raises:
        ConditionError: there is none of that name.
    """
    known = all_conditions()
    if name not in known:
        raise ConditionError(f"There is no condition {name!r}; known are {', '.join(known)}.")
    return known[name]


def hint_pictures(
    name: str,
    picture: np.ndarray,
    image_resolution: int,
    detect_resolution: int | None = None,
    detector: Any = None,
    **options: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What the original's apps make of a picture before they sample.

    Args:
        name: of the condition.
        picture: uint8, ``[H, W]`` or ``[H, W, 1 | 3 | 4]`` RGB, in [0, 255].
        image_resolution: short side of the result, in pixels.
        detect_resolution: short side of what the detector sees, by default the original's.
        detector: used instead of the condition's own.
        options: of the condition, such as canny's ``low_threshold``; what is left out has its default.

    Returns:
        the control picture that the network sees, and the first picture of the original's gallery: both uint8
        RGB ``[H, W, 3]``.

    Raises:
        ConditionError: an unknown condition.
    """
    condition = find_condition(name)(detector)
    hint = condition.hint(picture, image_resolution, detect_resolution, **options)
    return condition.control(hint), condition.show(hint)
