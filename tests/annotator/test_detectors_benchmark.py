"""The benchmark of detectors compares like with like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import detectors
from benchmarks.measure import seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", detectors.DETECTORS)
def test_both_sides_give_the_same_map(name: str, capsys: pytest.CaptureFixture):
    detectors.compare(name, 64, "fp32", CPU, lambda function: seconds(function, CPU), repeats=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name, "ours", "original", "ratio"]


def test_another_map_is_noticed(monkeypatch: pytest.MonkeyPatch):
    sides = detectors.Sides(lambda picture: picture[..., 0], lambda picture: np.zeros_like(picture[..., 0]))
    monkeypatch.setitem(detectors.DETECTORS, "wrong", lambda *_: sides)
    with pytest.raises(RuntimeError, match="cannot be compared"):
        detectors.compare("wrong", 64, "fp32", CPU, lambda function: seconds(function, CPU), repeats=1)
