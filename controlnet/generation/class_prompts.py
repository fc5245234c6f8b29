"""A prompt for each class: ``house: red brick; sky: stormy evening``, each for the pixels of its class alone.

The map says where the classes are: the hint of segmentation, or a map that a request brings beside the hint
of another condition.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from annotator.ade20k import CLASSES
from controlnet.conditions import DEFAULT, find_condition
from controlnet.generation.checks import RequestError, check_shape, short_repr
from controlnet.generation.packing import read_hint
from controlnet.pictures import PictureSource

if TYPE_CHECKING:
    from controlnet.generation.request import Request

MOST = 24
"""How many classes of one request may have a prompt of their own."""

MAX_STRETCH = 0.2
"""How far the proportions of map and picture may be apart: results have sides of multiples of 64 pixels."""


def checked_class_prompts(value: Any) -> dict[str, str]:
    """Prompts by class name, in their order.

    Args:
        value: text by class, which is a name or an index of ADE20K; or all of it as people type it,
            ``house: red brick; sky: stormy evening``. A class whose text is blank is left out.

    Raises:
        RequestError: something else, an unknown class, one that is named twice, or more than `MOST`.
    """
    pairs = _typed_pairs(value) if isinstance(value, str) else value
    if not isinstance(pairs, Mapping):
        raise RequestError(
            f"class_prompts must be text by class, such as house: red brick; got {short_repr(value)}."
        )
    prompts: dict[str, str] = {}
    for named, text in pairs.items():
        name = class_name(named)
        if not isinstance(text, str):
            raise RequestError(f"The prompt for the class {name} must be text, got {short_repr(text)}.")
        if name in prompts:
            raise RequestError(f"The class {name} has two prompts; give it one.")
        if text.strip():
            prompts[name] = text.strip()
    if len(prompts) > MOST:
        raise RequestError(f"There are prompts for {len(prompts)} classes; {MOST} is the most.")
    return prompts


def _typed_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.replace("\n", ";").split(";"))):
        name, colon, words = part.partition(":")
        if not colon:
            raise RequestError(
                f"{short_repr(part)} names no class: write class: words, such as house: red brick, "
                "with ; between classes."
            )
        if name.strip() in pairs:
            raise RequestError(f"The class {name.strip()} has two prompts; give it one.")
        pairs[name.strip()] = words
    return pairs


def class_name(named: Any) -> str:
    """The class that a name or an index means.

    Raises:
        RequestError: there is none; the text says which ones are near.
    """
    text = str(named).strip().lower()
    if text.isdecimal() and len(text) < 4 and int(text) < len(CLASSES):
        return CLASSES[int(text)]
    if text in CLASSES:
        return text
    near = difflib.get_close_matches(text[:80], CLASSES, n=3, cutoff=0.6)
    wanted = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"it must be one of ADE20K, by name or by its index, 0 to {len(CLASSES) - 1}."
    )
    raise RequestError(f"There is no class {short_repr(named)}: {wanted}")


def typed(prompts: Mapping[str, str]) -> str:
    """The prompts in one line, as people type them."""
    return "; ".join(f"{name}: {text}" for name, text in prompts.items())


def read_class_map(source: PictureSource) -> np.ndarray:
    """A map from a file, in colours or indices: uint8 ``[H, W]``, class indices.

    Raises:
        ConditionError, PictureError: it cannot be one.
    """
    return read_hint(find_condition(DEFAULT)(), source).hint


def check_class_map(request: Request) -> None:
    """Make sure that the map of a request with prompts for classes is one, of its picture, and holds them;
    one that must first be detected is believed.

    Raises:
        RequestError: there is no map, it is of another form, or lacks a class.
    """
    if request.class_map is not None:
        _check_indices(request.class_map)
        _check_proportions(request, request.class_map)
    labels, conditions = map_of(request), [request.condition, *(c.condition for c in request.further)]
    if labels is not None:
        check_classes(request.class_prompts, labels)
    elif request.class_prompts and DEFAULT not in conditions:
        raise RequestError(
            f"class_prompts need to know where the classes are, and {request.condition} does not say: bring "
            f"a map as class_map, or steer by {DEFAULT}."
        )


def _check_indices(labels: Any) -> None:
    is_array = isinstance(labels, np.ndarray)
    if not is_array or labels.dtype != np.uint8 or labels.ndim != 2:
        got = f"{labels.dtype} {list(labels.shape)}" if is_array else type(labels).__name__
        raise RequestError(f"class_map must be class indices, uint8 [H, W], got {got}.")
    check_shape("class_map", labels)
    if labels.max() >= len(CLASSES):
        raise RequestError(
            f"class_map holds class indices from 0 to {len(CLASSES) - 1}, got {int(labels.max())}."
        )


def _check_proportions(request: Request, labels: np.ndarray) -> None:
    pictures = (request.source, request.input_image, request.hint)
    source = next(picture for picture in pictures if picture is not None)
    if request.outpaint:
        return  # the map is that of the whole canvas
    (height, width), (rows, columns) = source.shape[:2], labels.shape
    if abs(width * rows / (height * columns) - 1) > MAX_STRETCH:
        raise RequestError(
            f"class_map is {columns}x{rows} pixels, the picture {width}x{height}: they must show the same."
        )


def map_of(request: Request, hint: np.ndarray | None = None) -> np.ndarray | None:
    """The map that a request's classes are found in, uint8 ``[h, w]``, or None where it brings none: the
    hint, the one beside it, or that of a further control.

    Args:
        hint: at the size of the result, where it is there already.
    """
    if request.condition == DEFAULT:
        return request.hint if hint is None else hint
    if request.class_map is not None:
        return request.class_map
    maps = [control.hint for control in request.further if control.condition == DEFAULT]
    return maps[0] if maps else None


def with_class_map(request: Request, hint: np.ndarray) -> Request:
    """The request with the map of its classes at the size of its hint ``[H, W]``, where it needs one.

    Raises:
        RequestError: the map lacks a class that has a prompt.
    """
    if not request.class_prompts:
        return request
    labels = map_of(request, hint)
    height, width = hint.shape[:2]
    if labels is not None and labels.shape != (height, width):
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    if labels is not None:
        check_classes(request.class_prompts, labels)
    fitted = copy.copy(request)  # no second check: rounding the sides may stretch the map
    object.__setattr__(fitted, "class_map", labels)
    return fitted


def check_classes(prompts: Mapping[str, str], labels: np.ndarray) -> None:
    """Make sure that a map holds the classes that have prompts.

    Raises:
        RequestError: it does not.
    """
    if not prompts:
        return
    held = held_classes(labels)
    missing = [name for name in prompts if name not in held]
    if missing:
        raise RequestError(f"The map holds no {' or '.join(missing)}; it holds {', '.join(held)}.")


def held_classes(labels: np.ndarray) -> list[str]:
    """The classes of a map, largest first."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
    return [CLASSES[index] for index in np.argsort(-counts, kind="stable") if counts[index]]


def class_shares(labels: np.ndarray, classes: Sequence[str], height: int, width: int) -> torch.Tensor:
    """How much of each pixel of the latent every class takes: float32 ``[1, K, height, width]``."""
    masks = np.stack([labels == CLASSES.index(name) for name in classes])
    return F.adaptive_avg_pool2d(torch.from_numpy(masks).float()[None], (height, width))
