"""Time of a detector per picture against the original's way to run the same network.

    python -m benchmarks.detectors --which hed [--size 512] [--repeats 7] [--threads 2] [--processor-time]

Both sides have the same random weights. The original's way is the plain network, eager, in the default memory
format and float32, with NumPy and OpenCV around it. Pictures must agree before times are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from annotator.hed import ControlNetHED_Apache2, HEDdetector
from benchmarks.measure import Clock, cpu_seconds, interleaved, machine, median, peak_memory, seconds
from ldm.weights import save_state_dict

Detect = Callable[[np.ndarray], np.ndarray]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Sides(NamedTuple):
    """The two that are compared; both get a picture ``[H, W, 3]``, RGB, uint8, and give the raw map."""

    ours: Detect
    original: Detect


def hed(folder: Path, device: torch.device, dtype: torch.dtype) -> Sides:
    network = random_weights(ControlNetHED_Apache2()).to(device)
    network.norm.data.fill_(120)
    for block in network.blocks:
        block.projection.weight.data *= 0.01  # all levels of grey
    checkpoint = folder / "hed.safetensors"
    save_state_dict(network.state_dict(), checkpoint)

    def original(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        with torch.no_grad():
            maps = network(torch.from_numpy(picture).float().to(device).permute(2, 0, 1)[None].contiguous())
        maps = [logits.cpu().numpy()[0, 0] for logits in maps]
        maps = [cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) for logits in maps]
        edges = 1 / (1 + np.exp(-np.mean(np.stack(maps, axis=2), axis=2).astype(np.float64)))
        return (edges * 255.0).clip(0, 255).astype(np.uint8)

    return Sides(HEDdetector(checkpoint, device, dtype), original)


DETECTORS: dict[str, Callable[[Path, torch.device, torch.dtype], Sides]] = {"hed": hed}
"""How each detector's two sides are made, from a folder for weights, a device, and the type of our side."""


def random_weights(network: nn.Module) -> nn.Module:
    """Weights with which activations keep their size from layer to layer."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network.eval().requires_grad_(False)


def compare(name: str, size: int, precision: str, device: torch.device, clock: Clock, repeats: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    with tempfile.TemporaryDirectory() as folder:
        sides = DETECTORS[name](Path(folder), device, PRECISIONS[precision])
        maps, memory = {}, {}
        for side, detect in sides._asdict().items():
            detect(picture)  # warm up
            with peak_memory(device) as used:
                maps[side] = detect(picture)
            memory[side] = used.peak
    same = np.mean(maps["ours"] == maps["original"])
    if precision == "fp32" and same < 0.999:
        raise RuntimeError(f"only {same:.2%} of the values are equal: the times cannot be compared")
    print(f"{name} at {size}x{size}: {same:.3%} of the values equal, {len(np.unique(maps['ours']))} levels")
    runs = {side: lambda d=detect: clock(lambda: d(picture)) for side, detect in sides._asdict().items()}
    times = interleaved(runs, repeats)
    for side, taken in times.items():
        kind = precision if side == "ours" else "fp32"
        spread = f"{min(taken):.3f} to {max(taken):.3f}"
        beside = f"{memory[side] / 2**20:.0f} MiB beside the weights"
        print(f"{side:8} {kind}  {median(taken):6.3f} s a picture ({spread}), {beside}")
    print(f"ratio          {median(times['original']) / median(times['ours']):6.2f} x")


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
    device = torch.device(options.device)
    threads = 1 if options.processor_time else options.threads
    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    clock = cpu_seconds if options.processor_time else lambda function: seconds(function, device)
    print(machine(device))
    for name in options.which:
        for size in options.size:
            compare(name, size, options.precision, device, clock, options.repeats)


if __name__ == "__main__":
    main()
