"""Sheets: every picture lies exactly in its place, labels stand beside and above, whatever the sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import ImageFont

from controlnet.generation.sheet import compose_sheet, wrapped

TEXTS = ("", "seed 1", "a red house by a lake in spring, at sunset", "W" * 300, "word " * 200, "größer · été")


def pictures_of(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> dict:
    return {
        place: rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for place in itertools.product(range(rows), range(columns))
        if rng.random() < 0.8 or place == (0, 0)
    }


@pytest.mark.parametrize("seed", range(10))
def test_every_picture_lies_in_its_box_and_no_box_meets_another(seed):
    rng = np.random.default_rng(seed)
    rows, columns, height, width = rng.integers([1, 1, 20, 20], [5, 5, 120, 120])
    labels = [[str(rng.choice(TEXTS)) for _ in range(count)] for count in (rows, columns)]
    pictures = pictures_of(rng, rows, columns, height, width)
    sheet = compose_sheet(pictures, *labels, note=str(rng.choice(TEXTS)))
    taken = np.zeros(sheet.picture.shape[:2], int)
    assert set(sheet.boxes) == set(itertools.product(range(rows), range(columns)))
    for place, (left, top, wide, high) in sheet.boxes.items():
        inside = sheet.picture[top : top + high, left : left + wide]
        assert inside.shape == (height, width, 3), "all of it lies on the sheet"
        taken[top : top + high, left : left + wide] += 1
        if place in pictures:
            np.testing.assert_array_equal(inside, pictures[place])
        else:
            assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 1
        assert sheet.cell_at(left, top) == sheet.cell_at(left + wide - 1, top + high - 1) == place
    assert taken.max() == 1
    assert sheet.cell_at(-1, 0) is None


def test_labels_are_written_beside_and_above_and_take_no_room_where_there_are_none():
    white = {place: np.full((64, 64, 3), 255, np.uint8) for place in itertools.product(range(2), range(2))}
    bare = compose_sheet(white, ["", ""], ["", ""]).picture
    assert bare.min() == 255 and bare.shape == (64 * 2 + 6, 64 * 2 + 6, 3)
    sheet = compose_sheet(white, ["seed 1", "seed 2"], ["", "strength 2"])
    ink = sheet.picture.min(axis=2) < 200
    left, top, width, height = sheet.boxes[0, 1]
    assert ink[:top, left : left + width].any(), "above the second column"
    assert not ink[:top, :left].any(), "not above the first"
    for row in range(2):
        y = sheet.boxes[row, 0][1]
        assert ink[y : y + height, : sheet.boxes[row, 0][0]].any()
    assert not ink[top:, sheet.boxes[0, 0][0] :].any(), "and on no picture"


def test_many_large_cells_are_reduced_together():
    pictures = pictures_of(np.random.default_rng(0), 3, 4, 200, 300)
    sheet = compose_sheet(pictures, [""] * 3, [""] * 4, max_pixels=90_000)
    (_, _, width, height), *others = sheet.boxes.values()
    assert 0.95 * 90_000 < 12 * width * height <= 90_000
    assert abs(width / height - 1.5) < 0.05
    assert all(box[2:] == (width, height) for box in others)


def test_a_text_keeps_to_its_width_and_height():
    font = ImageFont.load_default(size=14)
    for text, width, height in itertools.product(TEXTS, (30, 90, 400), (10, 60, None)):
        lines = wrapped(font, text, width, height)
        assert all(font.getlength(line) <= width or len(line) <= 3 for line in lines)
        assert height is None or len(lines) <= max(1, height / 14)
        whole = "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert whole or lines[-1].endswith("…"), "what is left out is marked"


@pytest.mark.parametrize(
    ("pictures", "rows", "columns", "text"),
    [
        ({}, [], ["a"], "got 0 and 1"),
        ({}, ["a"], ["a"], "needs the size"),
        ({(0, 1): 0}, ["a"], ["a"], "column 1"),
    ],
)
def test_what_is_no_sheet_is_refused(pictures, rows, columns, text):
    with pytest.raises(ValueError, match=text):
        compose_sheet(pictures, rows, columns)
