"""`make bench`: every run that it knows exists, and what they print becomes rows."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from benchmarks import everything
from benchmarks.everything import Run, all_runs, carry_out, rows_of

RUN = Run("step fp32", "sampling_step")


def test_every_run_is_a_module_that_is_there():
    for precision in ("fp32", "bf16"):
        runs = all_runs(precision)
        assert all(importlib.util.find_spec(f"benchmarks.{run.module}") for run in runs)
        assert len({run.name for run in runs}) == len(runs)
    assert not any("bf16" in run.name for run in all_runs("fp32"))


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("OPENVINO ratio 1.04 x at 256, outputs differ by 1.0e-05",
         "| step fp32 | OPENVINO | 1.04 | at 256, outputs differ by 1.0e-05 |"),
        ("ratio          1.72 x", "| step fp32 | peer | 1.72 |  |"),
        ("VAE decode ratio 1.50 x, outputs differ by 1e-6",
         "| step fp32 | VAE decode | 1.50 | outputs differ by 1e-6 |"),
    ],
)  # fmt: skip
def test_lines_with_a_ratio_become_rows(line, row):
    assert list(rows_of(RUN, f"some processor, load 2.0\n{line}\nother  1.0 s")) == [row]


def test_a_run_that_fails_or_takes_too_long_is_told(monkeypatch):
    assert "time did not suffice" in carry_out(RUN, -1, False)[0]
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: no diffusers")
    monkeypatch.setattr(everything.subprocess, "run", lambda *_, **__: failed)
    assert carry_out(RUN, 10, True) == ["| step fp32 | - | - | ModuleNotFoundError: no diffusers |"]


def test_the_table_of_detectors_becomes_rows():
    run = Run("detector hed", "detectors")
    line = "HED                  512     0.5000   0.4 0.6     0.9000   0.8 1.0    1.80 x     10     20  equal"
    assert list(rows_of(run, f"heading  ratio\n{line}")) == [
        "| detector hed | HED | 1.80 | 10     20  equal |"
    ]
