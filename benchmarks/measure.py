"""What every benchmark needs: interleaved timing, peak memory, a line that says where it ran."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

Clock = Callable[[Callable[[], object]], float]
"""Gives the seconds that a call takes."""


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, summed over the threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each side in turn, `repeats` times over, so that a disturbance of the machine meets all of them.

    Each side returns the seconds it took. The order turns round from one round to the next.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            times[name].append(sides[name]())
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


@dataclass
class Memory:
    """Filled in when the `with` block of `peak_memory` ends: bytes above what was held before it began."""

    peak: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Most memory that the block held at once, beyond what was held when it began, in bytes.

    On a GPU what torch allocates there; on a CPU the resident memory of the process, where Linux tells it,
    else 0.
    """
    memory = Memory()
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield memory
        memory.peak = torch.cuda.max_memory_allocated(device) - before
        return
    before = _reset_peak_resident()
    yield memory
    memory.peak = max(0, process_memory("VmHWM") - before)


def _reset_peak_resident() -> int:
    """Give freed memory back, set the kernel's high-water mark to what is resident now, and return that."""
    with suppress(OSError, AttributeError, TypeError):  # glibc alone has this
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return process_memory("VmHWM")
    return process_memory("VmRSS")


def process_memory(field: str, process: int | str = "self") -> int:
    """A field of a process's status in /proc, such as "VmRSS", in bytes; 0 where there is none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def weight_bytes(*modules: torch.nn.Module) -> int:
    """Memory of the parameters and buffers."""
    return sum(
        t.numel() * t.element_size() for module in modules for t in [*module.parameters(), *module.buffers()]
    )


def machine(device: torch.device) -> str:
    """One line: processor or GPU, threads, load, and torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    load = f"load {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "load unknown"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    return f"{model}, {threads}, {load}, torch {torch.__version__}"
