"""Checks the segmentation maps that people bring, and repairs what can be repaired.

Maps arrive with red and blue swapped, as JPEG, with anti-aliased edges, with colours of another palette, or
as index maps. Every pixel gets the nearest class of ADE20K, and the report says what was done, class by
class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from annotator.ade20k import CLASSES, PALETTE, color_codes, colorize
from controlnet.pictures import Picture, PictureSource, decode

# Within this Euclidean distance a colour is the class's own, moved by a lossy format.
_NEAR = 5.0
_AREA = 16  # pixels, surrounded by their own class, from which on a class is believed to be in the map
_AT_ONCE = 16_384  # colours compared with the palette at a time: the distances stay in the cache
_BGR_SAMPLE = 16_384  # the most frequent colours decide on the order of the channels
_PALETTE_CODES = color_codes(PALETTE)
_SHARED = int(_PALETTE_CODES[CLASSES.index("road")])
_GREY_COLORS = sorted({int(color[0]) for color in PALETTE if len(set(color.tolist())) == 1})


@dataclass(frozen=True)
class ClassReport:
    """One class of a map: ``touched`` of its ``pixels`` did not have its exact colour and were snapped
    to it.
    """

    label: int
    name: str
    pixels: int
    touched: int


@dataclass(frozen=True)
class MapReport:
    """What a map holds, repaired, and what was wrong with it.

    Attributes:
        labels: uint8 ``[H, W]``, class indices in [0, 149].
        colors: uint8 ``[H, W, 3]`` RGB, the exact palette colours of the labels.
        kind: "color map", "BGR color map" or "index map": how the map was read.
        classes: the classes of the map, the largest first.
        touched: pixels that did not have the exact value of a class.
        warnings: one sentence each; none for a clean map.
    """

    labels: np.ndarray
    colors: np.ndarray
    kind: str
    classes: tuple[ClassReport, ...]
    touched: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        height, width = self.labels.shape
        lines = [f"{self.kind}, {width}x{height}, {len(self.classes)} classes, {self.touched} pixels touched"]
        lines += [f"  {c.label:3d} {c.name}: {c.pixels} pixels, {c.touched} touched" for c in self.classes]
        return "\n".join(lines + [f"  ! {warning}" for warning in self.warnings])


def validate_map(source: PictureSource | np.ndarray) -> MapReport:
    """Read a segmentation map, find out what kind it is, and snap every pixel to the nearest class of ADE20K.

    Index maps (one channel, or three equal ones) keep their numbers; colour maps get the nearest colour, by
    Euclidean distance in RGB, the lower class where two are equally near; single pixels that blend two areas
    get the class of the nearest pixel that does not. Files with a palette are index maps, unless the colours
    of the palette are ADE20K's and the numbers do not go with them. Transparent pixels name no class: they
    get that of the nearest pixel that does. Colour profiles are not applied, since the colours are names.

    Args:
        source: a path, a file's bytes, an open binary file, or an array: integers ``[H, W]`` or uint8 RGB
            ``[H, W, 3]``.

    Raises:
        PictureError: a file that cannot be read, or an index map in a lossy format.
        ValueError: an array that is no map, or a map without one valid class.
    """
    if isinstance(source, np.ndarray):
        return _validate_array(source)
    picture = decode(source)
    transparent = picture.transparent()
    if transparent is None:
        return _validate_picture(picture, lambda values: values)
    if transparent.all():
        raise ValueError("The map has no pixel with a class: all of it is transparent.")
    warning = (
        f"{transparent.sum()} pixels are transparent: they took the class of the nearest pixel that is not."
    )
    return _validate_picture(picture, lambda values: _filled(values, transparent), [warning], transparent)


def _validate_picture(
    picture: Picture,
    filled: Callable[[np.ndarray], np.ndarray],
    warnings: Sequence[str] = (),
    gaps: np.ndarray | bool = False,
) -> MapReport:
    """A map from a file; ``filled`` closes its transparent ``gaps``."""
    if picture.mode == "P":
        colors, indices = filled(picture.stored_colors()), filled(picture.indices())
        numbers_fit = indices.max() < len(PALETTE) and bool((PALETTE[indices] == colors).all())
        if not numbers_fit and np.isin(color_codes(colors), _PALETTE_CODES).all():
            return _validate_colors(colors, warnings, gaps)
        return _validate_indices(indices, warnings, gaps)
    if picture.mode in ("1", "L") or picture.mode.startswith("I;16"):
        return _validate_indices(filled(picture.indices()), warnings, gaps)
    if picture.format not in ("JPEG", "MPO"):
        return _validate_array(filled(picture.stored_colors()), warnings, gaps)
    lossy = "The file is a JPEG, which changes colours: save maps as PNG."
    return _validate_colors(filled(picture.stored_colors()), [lossy, *warnings], gaps)


def _validate_array(
    array: np.ndarray, warnings: Sequence[str] = (), gaps: np.ndarray | bool = False
) -> MapReport:
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer) and array.size:
        return _validate_indices(array, warnings, gaps)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"A map must be integers [H, W] or uint8 RGB [H, W, 3], got {array.dtype} {list(array.shape)}."
        )
    if (array[:, :, 0] == array[:, :, 1]).all() and (array[:, :, 0] == array[:, :, 2]).all():
        return _validate_indices(array[:, :, 0], warnings, gaps)
    return _validate_colors(array, warnings, gaps)


def _validate_indices(
    values: np.ndarray, warnings: Sequence[str] = (), gaps: np.ndarray | bool = False
) -> MapReport:
    """``[H, W]`` of numbers: classes from 0, or from 1 as in ADE20K's own files; 255 (there also 0) names no
    class.
    """
    present = np.unique(values)
    if np.isin(present, _GREY_COLORS).all():  # a colour map of grey classes only, saved as grey
        return _validate_colors(np.stack([values.astype(np.uint8)] * 3, axis=2), warnings, gaps)
    from_one = len(PALETTE) in present
    outside = present[(present < 0) | ((present > len(PALETTE)) & (present != 255))]
    if outside.size:
        raise ValueError(
            f"The map is grey with values such as {outside[:3].tolist()}: neither an index map of 150 "
            "classes (values "
            "0 to 149, or 1 to 150, and 255 for none) nor a colour map."
        )
    labels = values.astype(np.int16) - (1 if from_one else 0)
    no_class = (labels < 0) | (labels >= len(PALETTE))
    if no_class.all():
        raise ValueError("The index map has no pixel with a class: every value is 255 or, counted from 1, 0.")
    warnings = list(warnings)
    if from_one:
        warnings.append("The numbers run from 1 to 150, as in ADE20K's own files: 1 was taken off each.")
    if no_class.any():
        count = int(no_class.sum())
        warnings.append(
            f"{count} pixels name no class (255, or 0 counted from 1): they took the nearest pixel's."
        )
        labels = _filled(labels, no_class)
    return _report(labels.astype(np.uint8), no_class | gaps, "index map", warnings)


def _filled(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """``[H, W, ...]``, where every missing pixel has the value of the nearest pixel that is not missing."""
    _, nearest = cv2.distanceTransformWithLabels(
        missing.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    value_of = np.zeros((nearest.max() + 1, *values.shape[2:]), dtype=values.dtype)
    value_of[nearest[~missing]] = values[~missing]
    return value_of[nearest]


def _validate_colors(
    colors: np.ndarray, warnings: Sequence[str] = (), gaps: np.ndarray | bool = False
) -> MapReport:
    """uint8 RGB ``[H, W, 3]``, in either order of channels, clean or not."""
    warnings = list(warnings)
    codes = color_codes(colors)
    unique, counts = np.unique(codes, return_counts=True)
    kind = "color map"
    if _is_bgr(unique, counts):
        kind = "BGR color map"
        warnings.append(
            "Red and blue were swapped (BGR, as OpenCV reads and writes): they were swapped back."
        )
        codes = color_codes(colors[:, :, ::-1])
        unique, counts = np.unique(codes, return_counts=True)
    nearest, distance = _nearest_class(unique)

    # Plain tables over all 2**24 colours: only the entries of the map's own colours are ever touched.
    label_of = np.empty(2**24, dtype=np.uint8)
    distance_of = np.empty(2**24, dtype=np.float32)
    label_of[unique], distance_of[unique] = nearest, distance
    labels = label_of[codes]
    touched = np.zeros(codes.shape, dtype=bool)
    if distance.any():
        off_by = distance_of[codes]
        touched = off_by > 0
        warnings += _settle_touched(codes, labels, off_by)
    shared = int(counts[unique == _SHARED].sum())
    if shared:
        warnings.append(
            f"{shared} pixels are (140, 140, 140), the colour of road and skyscraper: they read as road."
        )
    return _report(labels, touched | gaps, kind, warnings)


def _settle_touched(codes: np.ndarray, labels: np.ndarray, off_by: np.ndarray) -> list[str]:
    """Tell lossy compression, foreign colours and blended edges apart; put the edges right.

    The colour of a blend names a third class, so that a blended pixel takes the label of the nearest pixel
    that is none. Blended is an inexact pixel outside every area of one colour, if its colour is far from all
    classes, or near a class that fills no area anywhere. Changes ``labels`` in place and returns the
    warnings.
    """
    near, far = (off_by > 0) & (off_by <= _NEAR), off_by > _NEAR
    square = np.ones((3, 3), dtype=np.uint8)
    surrounded = (cv2.erode(labels, square) == cv2.dilate(labels, square)) & ~far
    fills_area = np.bincount(labels[surrounded], minlength=len(PALETTE)) >= _AREA
    flat = _in_areas(codes)
    foreign, blended = far & flat, (far | near & ~fills_area[labels]) & ~flat
    warnings = []
    if far.mean() > 0.5:
        warnings.append(
            f"{far.mean():.0%} of the pixels have no class's colour: is this a segmentation map at all?"
        )
    if near.any():
        warnings.append(
            f"{int(near.sum())} pixels are slightly off their class's colour, as after JPEG or resizing."
        )
    if foreign.any():
        warnings.append(_name_foreign(codes[foreign], labels[foreign]))
    if blended.any():
        warnings.append(
            f"{int(blended.sum())} pixels are blends, as anti-aliased edges and JPEG make them: draw without "
            "anti-aliasing, resize with nearest neighbour, save as PNG."
        )
        if not blended.all():
            labels[:] = _filled(labels, blended)
    only_touched = np.setdiff1d(labels[off_by > 0], labels[off_by == 0])
    if only_touched.size:
        names = ", ".join(CLASSES[label] for label in only_touched[:5])
        warnings.append(
            f"{len(only_touched)} classes appear only where colours were inexact, such as {names}."
        )
    return warnings


def _in_areas(codes: np.ndarray) -> np.ndarray:
    """bool ``[H, W]``: the pixels that lie in a 2x2 square of one colour, which a blended edge hardly
    makes.
    """
    same_in_row = codes[:, 1:] == codes[:, :-1]
    square = same_in_row[1:] & same_in_row[:-1] & (codes[1:, 1:] == codes[:-1, 1:])
    areas = np.zeros(codes.shape, dtype=bool)
    for part in (np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1], np.s_[1:, 1:]):
        areas[part] |= square
    return areas


def _name_foreign(codes: np.ndarray, labels: np.ndarray) -> str:
    colors, first, counts = np.unique(codes, return_index=True, return_counts=True)
    largest = np.argsort(-counts)[:3]
    examples = ", ".join(
        f"{(int(code) >> 16, (int(code) >> 8) & 255, int(code) & 255)} -> {CLASSES[label]}"
        for code, label in zip(colors[largest], labels[first[largest]], strict=True)
    )
    return f"{len(codes)} pixels have colours that ADE20K does not have ({len(colors)} of them): {examples}."


def _is_bgr(unique: np.ndarray, counts: np.ndarray) -> bool:
    """Whether the colours fit the palette clearly better with red and blue swapped.

    Many classes have another class's colour backwards, so that single pixels say nothing; all of them
    together do.
    """
    order = np.argsort(-counts)[:_BGR_SAMPLE]
    unique, counts = unique[order], counts[order]
    _, as_rgb = _nearest_class(unique)
    if not as_rgb.any():
        return False
    _, as_bgr = _nearest_class(((unique & 0xFF) << 16) | (unique & 0xFF00) | (unique >> 16))
    return bool((as_bgr * counts).sum() < 0.5 * (as_rgb * counts).sum())


def _nearest_class(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int ``[N]`` colours 0xRRGGBB -> uint8 ``[N]`` nearest classes, float32 ``[N]`` Euclidean distances to
    them.

    All numbers stay below 2**24, so that float32 computes them exactly and equal distances are equal.
    """
    colors = np.stack([codes >> 16, (codes >> 8) & 255, codes & 255, np.ones_like(codes)], axis=1).astype(
        np.float32
    )
    palette = PALETTE.astype(np.float32)
    against = np.concatenate(
        [-2 * palette.T, (palette**2).sum(axis=1)[None]]
    )  # |c - p|^2 - |c|^2 = |p|^2 - 2 c.p
    labels = np.empty(len(codes), dtype=np.uint8)
    distances = np.empty(len(codes), dtype=np.float32)
    for start in range(0, len(codes), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores = colors[part] @ against
        labels[part] = scores.argmin(axis=1)
        offsets = colors[part, :3] - palette[labels[part]]
        distances[part] = np.sqrt((offsets**2).sum(axis=1))
    return labels, distances


def _report(labels: np.ndarray, touched: np.ndarray, kind: str, warnings: list[str]) -> MapReport:
    pixels = np.bincount(labels.ravel(), minlength=len(PALETTE))
    changed = np.bincount(labels[touched], minlength=len(PALETTE))
    classes = [
        ClassReport(int(label), CLASSES[label], int(pixels[label]), int(changed[label]))
        for label in np.argsort(-pixels, kind="stable")
        if pixels[label]
    ]
    return MapReport(labels, colorize(labels), kind, tuple(classes), int(touched.sum()), tuple(warnings))
