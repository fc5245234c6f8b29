"""The palette and the way from labels to colours and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from annotator.ade20k import CLASSES, PALETTE, colorize, labels_from_colors

GOLDEN = Path(__file__).parents[1] / "golden" / "ade20k.json"
ROAD, SKYSCRAPER = CLASSES.index("road"), CLASSES.index("skyscraper")


def test_names_and_colors_are_the_originals():
    golden = json.loads(GOLDEN.read_text())
    assert list(CLASSES) == [name.strip() for name in golden["classes"]]
    assert PALETTE.tolist() == golden["palette"]


def test_round_trip_of_every_class():
    labels = np.arange(len(CLASSES), dtype=np.uint8).reshape(10, 15)
    expected = np.where(labels == SKYSCRAPER, ROAD, labels)
    np.testing.assert_array_equal(labels_from_colors(colorize(labels)), expected)


def test_a_color_off_by_one_is_refused():
    colors = colorize(np.zeros((4, 4), np.uint8))
    colors[1, 2, 0] += 1
    with pytest.raises(ValueError, match=r"1 pixels .*121, 120, 120"):
        labels_from_colors(colors)


@pytest.mark.parametrize("label", [-1, 150, 255])
def test_a_label_without_a_color_is_refused(label: int):
    with pytest.raises(ValueError, match=rf"0 to 149, got \[{label}\]"):
        colorize(np.array([0, label]))
