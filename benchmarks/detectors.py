"""Time of each detector per picture against the original's way to run it.

    python -m benchmarks.detectors [--which hed mlsd depth pose] [--size 512] [--repeats 7] [--processor-time]

One table: medians of both sides, which take turns, and the ratio. Both have the same weights and must give
the same before they are timed. What the original's way is, each module of ``benchmarks/original_way`` says.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch

from benchmarks.measure import Clock, cpu_seconds, interleaved, machine, median, peak_memory, seconds
from benchmarks.original_way import Differ, Pair
from benchmarks.original_way.hed import hed
from benchmarks.original_way.midas import depth
from benchmarks.original_way.mlsd import mlsd
from benchmarks.original_way.openpose import pose

DETECTORS: dict[str, Callable[[Path, int, torch.device, torch.dtype], Iterator[Pair]]] = {
    "hed": hed,
    "mlsd": mlsd,
    "depth": depth,
    "pose": pose,
}
"""How the pairs of each detector are made: see ``benchmarks/original_way``."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HEADING = (
    f"{'':24}  {'size':>5}  {'ours':>9}  {'(from to)':^17}  {'original':>9}  {'(from to)':^17}"
    f"  {'ratio':>7}  {'MiB':>5}  {'MiB':>5}"
)


def compare(
    pair: Pair, size: int, device: torch.device, clock: Clock, repeats: int, strict: bool = True
) -> str:
    """One line of the table.

    Raises:
        Differ: the two sides do not give the same, and ``strict`` says that they should.
    """
    sides = {"ours": pair.ours, "original": pair.original}
    memory, results = {}, {}
    for name, side in sides.items():
        side()  # warms up
        with peak_memory(device) as used:
            results[name] = side()
        memory[name] = used.peak / 2**20
    try:
        agreement = pair.agreement(results["ours"], results["original"])
    except Differ as error:
        if strict:
            raise
        agreement = str(error)
    times = interleaved({name: lambda s=side: clock(s) for name, side in sides.items()}, repeats)
    columns = "  ".join(
        f"{median(each):9.4f}  {f'{min(each):.4f} {max(each):.4f}':^17}" for each in times.values()
    )
    ratio = median(times["original"]) / median(times["ours"])
    held = "  ".join(f"{memory[name]:5.0f}" for name in sides)
    return f"{pair.name:24}  {size:5}  {columns}  {ratio:5.2f} x  {held}  {agreement}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--which", choices=DETECTORS, nargs="+", default=list(DETECTORS))
    parser.add_argument("--size", type=int, nargs="+", default=[512], help="side of the picture, in pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of our side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch and OpenCV on a CPU")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args()
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    threads = 1 if options.processor_time else options.threads
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    clock = cpu_seconds if options.processor_time else lambda function: seconds(function, device)
    kind = "processor time" if options.processor_time else "wall time"
    print(machine(device))
    print(
        f"seconds of {kind} a picture, ours in {options.precision}; MiB beside the weights, ours and original"
    )
    print(HEADING)
    for name in options.which:
        for size in options.size:
            with tempfile.TemporaryDirectory() as folder:
                for pair in DETECTORS[name](Path(folder), size, device, dtype):
                    print(
                        compare(pair, size, device, clock, options.repeats, options.precision == "fp32"),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
