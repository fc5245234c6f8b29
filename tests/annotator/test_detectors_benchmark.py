"""The benchmark of detectors compares like with like, and its table says so."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import detectors
from benchmarks.measure import seconds
from benchmarks.original_way import Differ, Pair, equal_values, midas, openpose

CPU = torch.device("cpu")
NARROW = {
    "stem": 16, "widths": (32, 64, 64), "depths": (1, 1, 1), "hidden_size": 64, "layers": 3, "mlp": 96,
    "side": 4, "laterals": (32, 64, 48, 40), "fusion": 24,
}  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch):
    """The largest networks are small."""
    monkeypatch.setattr(midas, "RELEASED", NARROW)
    for name in ("bodypose_model", "handpose_model"):
        monkeypatch.setattr(
            openpose, name, lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 19, 1))
        )


def test_one_table_for_all(narrow, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["detectors", "--size", "64", "--repeats", "1", "--device", "cpu"])
    detectors.main()
    processor, _, heading, *rows = capsys.readouterr().out.splitlines()
    assert "threads of" in processor and heading.split()[0] == "size"
    names = [row.split("  ")[0] for row in rows]
    assert [name for name in names if ":" not in name] == list(detectors.DETECTORS)
    assert len(names) == len(detectors.DETECTORS) + 4, "the parts of the pose detector"
    for row in rows:
        assert row[24:31].strip() == "64" and " x " in row
        assert "equal" in row or "difference" in row or "the same" in row


def test_another_map_is_noticed():
    picture = np.ones((8, 8), np.uint8)
    pair = Pair("wrong", lambda: picture, lambda: 0 * picture, equal_values)
    clock = lambda function: seconds(function, CPU)  # noqa: E731
    with pytest.raises(Differ, match=r"only 0\.00% of the values are equal: the times cannot be compared"):
        detectors.compare(pair, 8, CPU, clock, repeats=1)
    assert "only 0.00%" in detectors.compare(pair, 8, CPU, clock, repeats=1, strict=False)
