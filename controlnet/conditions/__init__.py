"""What a picture can be reduced to, to steer a new one: one module for each condition.

A module (or small package) of this folder with a class ``CONDITION`` is a condition; it needs to be named
nowhere.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
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
    "conditions_of_file",
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
        raise ConditionError(f"There is no condition {name[:80]!r}; known are {', '.join(known)}.")
    return known[name]


def conditions_of_file(path: Path, default: str = DEFAULT) -> tuple[str, ...]:
    """The conditions that a control file steers by, as its name says, or else the name of its folder: several
    where they share a control, such as scribbles and fake scribbles. ``default`` where no name says anything.
    """
    for text in (path.stem, path.parent.name):
        lengths = {name: _longest_word(condition, text) for name, condition in all_conditions().items()}
        if longest := max(lengths.values()):
            return tuple(name for name, length in lengths.items() if length == longest)
    return (default,)


def _longest_word(condition: type[Condition], text: str) -> int:
    """The length of the longest name of a condition, or of its released controls, that begins a word of a
    text.
    """
    text = text.lower().replace("controlnet", " ")
    words = {condition.name, *(stem.rpartition("sd15_")[2] for stem in condition.control_stems())}
    return max((len(word) for word in words if re.search(f"(?<![a-z]){word}", text)), default=0)


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
