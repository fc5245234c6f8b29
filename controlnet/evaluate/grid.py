"""A sheet of pictures to look at: generated ones beside drawn ones, and one hint or prompt with several of
the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cldm.cldm import ControlLDM
from controlnet.evaluate.evaluation import Case, Sampling, generate_all

PROMPTS = (
    "a red house and a white boat on a summer day, clear sky",
    "a yellow house at sunset, autumn trees",
    "a blue house at night in winter, falling snow",
    "a green house in spring by day, fog",
)
_GAP = 4


def compare(cases: Sequence[Case], generated: Mapping[int, np.ndarray]) -> np.ndarray:
    """One row a case: what steers, the drawn picture, the generated one."""
    return stack([[cases[i].steering, cases[i].picture, picture] for i, picture in sorted(generated.items())])


def variations(model: ControlLDM, cases: Sequence[Case], sampling: Sampling) -> np.ndarray:
    """Rows of the first cases' hints, columns of ``PROMPTS``: each prompt on each hint, with one noise."""
    shape = cases[0].labels.shape
    chosen = [case for case in cases if case.labels.shape == shape][:4]
    asked = [replace(case, prompt=prompt) for case in chosen for prompt in PROMPTS]
    pictures = [picture for _, picture in generate_all(model, asked, sampling, progress=False)]
    width = len(PROMPTS)
    rows = (pictures[k * width : (k + 1) * width] for k in range(len(chosen)))
    return stack([[case.steering, *row] for case, row in zip(chosen, rows, strict=True)])


def stack(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Lay pictures out in rows on white, uint8 RGB; each in a cell as large as the largest."""
    height = max(picture.shape[0] for row in rows for picture in row)
    width = max(picture.shape[1] for row in rows for picture in row)
    columns = max(map(len, rows))
    sheet = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = r * (height + _GAP), c * (width + _GAP)
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def sheet(
    model: ControlLDM, cases: Sequence[Case], generated: Mapping[int, np.ndarray], sampling: Sampling
) -> np.ndarray:
    """Both, one above the other, uint8 RGB."""
    parts = [compare(cases, generated), variations(model, cases, sampling)]
    width = max(part.shape[1] for part in parts)
    padded = [np.pad(p, ((0, 2 * _GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    return np.concatenate(padded)
