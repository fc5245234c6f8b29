"""A small rule that reads hour, season and colours off a picture, given its map.

It measures whether a generated picture follows its prompt, so it must not be learned and must be easy to
follow:

* **time**: the mean of the sky. Dark is night; more red than blue is sunset; else day.
* **season**: the median colour of the nearest two fifths of the grass (or hill, or tree), the light of the
hour
  divided out. Hardly coloured is winter; else the season whose own colour has the nearest hue.
* **colour of house, car, boat**: the light of the hour is divided out; dark pixels and roofs (the upper half
of a
  house) are left out. Where less than half is coloured it is white; else those pixels vote for the nearest
  hue.
"""

from __future__ import annotations

import cv2
import numpy as np

from controlnet.storybook.scenes.labels import Label
from controlnet.storybook.scenes.looks import (
    BOAT_COLOURS,
    CAR_COLOURS,
    GRASS,
    HOUSE_COLOURS,
    LEAVES,
    LIGHT,
    SEASONS,
    Colour,
)

_SMALLEST = {
    Label.HOUSE: 0.006,
    Label.CAR: 0.005,
    Label.BOAT: 0.004,
}  # share of the picture; of less the color cannot be told
_SMALLEST_GREEN = 0.02
_SNOWY = 0.12  # length of a colour's hue, its brightness being 1, below which ground is snow
_COLOURED = 0.14  # and from which on a wall is not white
_COLOURED_SHARE = 0.45
PAINTS = {
    "house": (Label.HOUSE, HOUSE_COLOURS),
    "car": (Label.CAR, CAR_COLOURS),
    "boat": (Label.BOAT, BOAT_COLOURS),
}


def can_tell(labels: np.ndarray) -> dict[str, bool]:
    """Which attributes a map leaves room to judge: ``time``, ``season``, ``house``, ``car``, ``boat``."""
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    green = share[Label.GRASS] + share[Label.HILL] + share[Label.TREE]
    told = {"time": bool(share[Label.SKY] > 0.02), "season": bool(green >= _SMALLEST_GREEN)}
    return told | {name: bool(share[label] >= _SMALLEST[label]) for name, (label, _) in PAINTS.items()}


def judge(picture: np.ndarray, labels: np.ndarray) -> dict[str, str | None]:
    """What a picture shows: ``time``, ``season``, and the colours of ``house``, ``car`` and ``boat``.

    Args:
        picture: uint8 RGB ``[H, W, 3]``.
        labels: the map that it was made for, uint8 ``[H, W]``.

    Returns:
        A name for each, or None where the map has too little of it.
    """
    if picture.shape[:2] != labels.shape:
        raise ValueError(f"The picture is {picture.shape[:2]}, its map {labels.shape}; one size is wanted.")
    told = can_tell(labels)
    seen: dict[str, str | None] = dict.fromkeys(told)
    time = _time(picture[labels == Label.SKY]) if told["time"] else "day"
    seen["time"] = time if told["time"] else None
    light = np.array(LIGHT[time], np.float32)
    if told["season"]:
        seen["season"] = _season(picture, labels, light)
    for name, (label, paints) in PAINTS.items():
        if told[name]:
            region = labels == label
            seen[name] = _paint(picture[_walls(region) if name == "house" else region] / light, paints)
    return seen


def _time(sky: np.ndarray) -> str:
    red, green, blue = sky.mean(0)
    if 0.3 * red + 0.59 * green + 0.11 * blue < 110:
        return "night"
    return "sunset" if red > blue else "day"


def _season(picture: np.ndarray, labels: np.ndarray, light: np.ndarray) -> str:
    grounds = (labels == Label.GRASS, labels == Label.HILL)
    region = next(
        (ground for ground in grounds if ground.mean() >= _SMALLEST_GREEN / 3), labels == Label.TREE
    )
    references = (
        LEAVES if labels[region][0] == Label.TREE else {season: (colour,) for season, colour in GRASS.items()}
    )
    rows = np.nonzero(region)[0]
    region[: int(np.quantile(rows, 0.6))] = False
    colour = np.median(picture[region], 0) / light
    hue = _hue(colour / max(float(colour.max()), 1.0))
    if np.linalg.norm(hue) < _SNOWY:
        return "winter"
    closeness = {s: max(float(hue @ _direction(c)) for c in references[s]) for s in SEASONS if s != "winter"}
    return max(closeness, key=lambda season: closeness[season])


def _walls(region: np.ndarray) -> np.ndarray:
    """The lower half of every house."""
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    walls = np.zeros_like(region)
    for part in range(1, count):
        top, height = boxes[part, cv2.CC_STAT_TOP], boxes[part, cv2.CC_STAT_HEIGHT]
        middle = top + round(height * 0.55)
        walls[middle:] |= parts[middle:] == part
    return walls


def _paint(pixels: np.ndarray, paints: dict[str, Colour]) -> str | None:
    pixels = pixels[pixels.max(1) > 70]
    if not len(pixels):
        return None
    hue = _hue(pixels / pixels.max(1, keepdims=True))
    strength = np.linalg.norm(hue, axis=1)
    coloured = strength > _COLOURED
    if coloured.mean() < _COLOURED_SHARE:
        return "white"
    names = [name for name in paints if name != "white"]
    references = np.stack([_direction(paints[name]) for name in names])
    votes = np.bincount(
        (hue[coloured] @ references.T).argmax(1), weights=strength[coloured], minlength=len(names)
    )
    return names[int(votes.argmax())]


def _hue(pixels: np.ndarray) -> np.ndarray:
    """What is left of a colour without its grey: neither haze nor shade turns it."""
    return pixels - pixels.mean(-1, keepdims=True)


def _direction(colour: Colour) -> np.ndarray:
    hue = _hue(np.array(colour, np.float32))
    return hue / np.linalg.norm(hue)
