"""One labelled picture of many: what is in a row or column stands beside or above it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_PIXELS = 48_000_000
"""Of the cells together; in a larger sheet they are reduced."""

_GAP = 6
_PAPER, _INK, _FAINT, _EMPTY = (255, 255, 255), (24, 32, 44), (90, 100, 116), (228, 232, 238)
_MOST_LINES = 8
_TALL = 1.35  # a line, in sizes of the font


@dataclass(frozen=True, eq=False)
class Sheet:
    """The picture uint8 RGB ``[H, W, 3]``, and where each cell lies: (left, top, width, height) by row and
    column, in pixels.
    """

    picture: np.ndarray
    boxes: Mapping[tuple[int, int], tuple[int, int, int, int]]

    def cell_at(self, x: float, y: float) -> tuple[int, int] | None:
        """Row and column of the cell at a place of the picture, if there is one."""
        for place, (left, top, width, height) in self.boxes.items():
            if left <= x < left + width and top <= y < top + height:
                return place
        return None


def compose_sheet(
    pictures: Mapping[tuple[int, int], np.ndarray],
    rows: Sequence[str],
    columns: Sequence[str],
    note: str = "",
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Sheet:
    """Lay pictures out with their labels, on white.

    Args:
        pictures: uint8 RGB ``[h, w, 3]`` by row and column; cells without one are grey.
        rows, columns: a label each; where all of an axis are empty, it takes no room.
        note: stands below, smaller, for what all have in common.
        size: height and width of a cell, by default those of the largest picture.
        max_pixels: that the cells may have together; they are reduced to it.

    Raises:
        ValueError: no rows or columns, a picture outside of them, or neither a picture nor a size.
    """
    check_places(pictures, len(rows), len(columns), size)
    height, width = size or tuple(max(p.shape[side] for p in pictures.values()) for side in (0, 1))
    smaller = min(1.0, math.sqrt(max_pixels / (len(rows) * len(columns) * height * width)))
    height, width = max(1, int(height * smaller)), max(1, int(width * smaller))
    font = font_of(letter_size(width, len(columns)))
    beside = [wrapped(font, label, width, height) for label in rows]
    above = [wrapped(font, label, width) for label in columns]
    left = round(max((font.getlength(line) for lines in beside for line in lines), default=0))
    left += 2 * _GAP if left else 0
    top = text_height(font, max(map(len, above)))
    total = left + len(columns) * (width + _GAP) - (_GAP if columns else 0)
    small = font_of(max(11, round(font.size * 0.8)))
    below = wrapped(small, note, total)
    bottom = top + len(rows) * (height + _GAP) - _GAP
    sheet = Image.new("RGB", (total, bottom + text_height(small, len(below))), _PAPER)
    pen = ImageDraw.Draw(sheet)
    boxes = {}
    for row, lines in enumerate(beside):
        y = top + row * (height + _GAP)
        write(pen, font, lines, (_GAP, y + height / 2), "lm", _INK)
        for column in range(len(columns)):
            x = left + column * (width + _GAP)
            boxes[row, column] = (x, y, width, height)
            pen.rectangle((x, y, x + width - 1, y + height - 1), _EMPTY)
            if (row, column) in pictures:
                paste(sheet, pictures[row, column], boxes[row, column])
    for column, lines in enumerate(above):
        centre = left + column * (width + _GAP) + width / 2
        write(pen, font, lines, (centre, top / 2), "mm", _INK)
    write(pen, small, below, (_GAP, (bottom + sheet.height) / 2), "lm", _FAINT)
    return Sheet(np.asarray(sheet), boxes)


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, of a height in pixels."""
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("This Pillow was built without FreeType, and writes no labels.")
    return font


def letter_size(width: int, columns: int) -> int:
    """Pixels of a font for cells of a width, to be read also where the whole sheet is shown reduced."""
    return max(12, round(min(width / 9, columns * width / 40)))


def check_places(
    pictures: Mapping[tuple[int, int], np.ndarray], rows: int, columns: int, size: tuple[int, int] | None
) -> None:
    """Raise a ValueError for what is no sheet."""
    if not rows or not columns:
        raise ValueError(f"A sheet has rows and columns, got {rows} and {columns}.")
    if not pictures and size is None:
        raise ValueError("A sheet without a picture needs the size of a cell.")
    for row, column in pictures:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"There is no row {row}, column {column} in {rows} x {columns} cells.")


def paste(sheet: Image.Image, picture: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """A picture in the middle of its cell, reduced where it is larger."""
    left, top, width, height = box
    image = Image.fromarray(picture)
    if image.width > width or image.height > height:
        image.thumbnail((width, height), Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))


def wrapped(font: ImageFont.FreeTypeFont, text: str, width: float, height: float | None = None) -> list[str]:
    """The lines of a text in a width in pixels, at most `_MOST_LINES`, or those that a height holds; what is
    left out is marked by an ellipsis. Words that are too long are cut.
    """
    most = _MOST_LINES if height is None else max(1, int(height / (font.size * _TALL)))
    lines: list[str] = []
    for word in text.split():
        while word and len(lines) <= most:
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and len(joined) <= width and font.getlength(joined) <= width:
                lines[-1], word = joined, ""
                continue
            fits = fitting(font, word, width)
            lines.append(word[:fits])
            word = word[fits:]
    if len(lines) > most:
        last = lines[most - 1]
        last = last[: fitting(font, last, width - font.getlength(" …"))]
        lines = [*lines[: most - 1], f"{last.rstrip()} …"]
    return lines


def fitting(font: ImageFont.FreeTypeFont, word: str, width: float) -> int:
    """How many letters of a word a width holds; at least one."""
    most = min(len(word), int(width) + 1)  # none is narrower than a pixel
    return max(1, bisect_right(range(most + 1), width, key=lambda count: font.getlength(word[:count])) - 1)


def text_height(font: ImageFont.FreeTypeFont, lines: int) -> int:
    """Pixels of some lines with room around them; none for none."""
    return math.ceil(lines * font.size * _TALL) + 2 * _GAP if lines else 0


def write(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    lines: Sequence[str],
    at: tuple[float, float],
    anchor: str,
    ink: tuple[int, int, int],
) -> None:
    """Lines of text around a place."""
    x, y = at
    first = y - (len(lines) - 1) / 2 * font.size * _TALL
    for number, line in enumerate(lines):
        pen.text((x, first + number * font.size * _TALL), line, ink, font, anchor)
