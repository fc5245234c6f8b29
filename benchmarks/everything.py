"""All timings against peers in one go, as one table: `make bench`.

    python -m benchmarks.everything [--minutes 15] [--only step vae] [--processor-time]

Each run is a process of its own, and its lines with a ratio become rows. A run that the time does not suffice
for is said to be missing. The sizes are small, so that all of it fits: `python -m benchmarks.sampling_step`
and the others take larger ones.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.detectors import DETECTORS
from benchmarks.measure import machine
from controlnet.generation.devices import find_device, find_precision, precision_name

RATIO = re.compile(r"^(?P<what>.*?) *ratio +(?P<ratio>\d+\.\d+) x(?P<rest>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """``python -m benchmarks.MODULE ARGUMENTS``, and what a row of the table calls it."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    takes_processor_time: bool = True


def all_runs(precision: str) -> list[Run]:
    """The runs in the order of their weight; ``precision`` beside fp32 where it is another."""
    runs = []
    for dtype in dict.fromkeys((precision, "fp32")):
        runs.append(
            Run(f"step {dtype}", "sampling_step", ("--size", "256", "--repeats", "2", "--dtype", dtype))
        )
        runs.append(Run(f"vae {dtype}", "vae", ("--size", "256", "--repeats", "2", "--dtype", dtype)))
    return [
        *runs,
        Run(f"controls {precision}", "several_controls", ("--repeats", "1", "--dtype", precision)),
        Run("detector UPerNet", "detector", ("--repeats", "1")),
        *(Run(f"detector {name}", "detectors", ("--which", name, "--repeats", "2")) for name in DETECTORS),
    ]


TABLE_ROW = re.compile(r"^(?P<what>\S.*?)  .*?(?P<ratio>\d+\.\d+) x(?P<rest>.*)$", re.MULTILINE)
"""A line of the table of ``benchmarks.detectors``."""


def rows_of(run: Run, output: str) -> Iterator[str]:
    """A table row for each ratio that a run has printed."""
    pattern = TABLE_ROW if run.module == "detectors" else RATIO
    for found in pattern.finditer(output):
        what = found["what"].strip(" :0123456789") or "peer"
        yield f"| {run.name} | {what} | {found['ratio']} | {found['rest'].strip(' ,')} |"


def carry_out(run: Run, seconds: float, processor_time: bool) -> list[str]:
    """The rows of a run, or one that says what came in between."""
    more = ["--processor-time"] if processor_time and run.takes_processor_time else []
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{run.module}", *run.arguments, *more]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(seconds, 0.01), check=False
        )
    except subprocess.TimeoutExpired:
        return [f"| {run.name} | - | - | time did not suffice |"]
    rows = list(rows_of(run, done.stdout))
    fault = (done.stderr.strip().splitlines() or ["it printed no ratio"])[-1]
    return rows or [f"| {run.name} | - | - | {fault} |"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15, help="for all runs together (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", default=[], help="runs whose names begin so, such as step or vae"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args(arguments)
    device = find_device("auto")
    end = time.monotonic() + 60 * options.minutes
    runs = all_runs(precision_name(find_precision("auto", device)))
    print(f"{machine(device)}\n\n| run | against | times as fast | |\n| --- | --- | --- | --- |", flush=True)
    for run in runs:
        if not options.only or run.name.startswith(tuple(options.only)):
            print("\n".join(carry_out(run, end - time.monotonic(), options.processor_time)), flush=True)


if __name__ == "__main__":
    main()
