"""How many storybook scenes a second are drawn, by how many processes.

    python -m benchmarks.draw_scenes [--count 2000] [--size 256] [--workers 2]

Pictures, maps and prompts are made and thrown away: no files, no colours of the map.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import cv2
import torch

from benchmarks.measure import machine
from controlnet.storybook.dataset import draw_scene


def draw_range(first: int, count: int, size: int) -> float:
    """Draw scenes and return the processor's seconds that it took."""
    started = time.process_time()
    for seed in range(first, first + count):
        draw_scene(seed, size)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="scenes in all (default 2000)")
    parser.add_argument("--size", type=int, default=256, help="side of a picture in pixels (default 256)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args()
    share = -(-options.count // options.workers)
    with ProcessPoolExecutor(options.workers, get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        firsts = [worker * share for worker in range(options.workers)]
        list(pool.map(draw_range, firsts, [8] * options.workers, [options.size] * options.workers))  # warm up
        started = time.perf_counter()
        busy = sum(pool.map(draw_range, firsts, [share] * options.workers, [options.size] * options.workers))
        wall = time.perf_counter() - started
    drawn = share * options.workers
    print(machine(torch.device("cpu")))
    print(
        f"{drawn / wall:.0f} scenes a second with {options.workers} processes, at {options.size} x "
        f"{options.size}"
    )
    print(
        f"{1000 * busy / drawn:.1f} ms of a core for each; {busy / wall / options.workers:.0%} of the time "
        "on it"
    )


if __name__ == "__main__":
    main()
