"""Time of the line detector per picture against the original's way.

    python -m benchmarks.detectors_mlsd [--size 512] [--repeats 9] [--threads 2] [--processor-time]

Both sides have the same weights and take turns. The original's way: the plain network, eager, with BatchNorm
by itself and default memory layout; float64 input; points looked at and lines drawn one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from annotator.mlsd import MLSDdetector, MobileV2_MLSD_Large
from benchmarks.measure import interleaved, machine, median, seconds
from ldm.weights import load_file_into

CPU = torch.device("cpu")
THRESHOLDS = (0.1, 0.1)


def picture_of_rooms(size: int) -> np.ndarray:
    """uint8 RGB ``[size, size, 3]``, full of straight edges."""
    random = np.random.default_rng(0)
    picture = np.full((size, size, 3), 200, np.uint8)
    for _ in range(40):
        corners = random.integers(0, size, (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(picture, cv2.convexHull(corners), random.integers(0, 256, 3).tolist())
    return picture


class OriginalWay:
    """The same detector, computed as the original computes it."""

    def __init__(self):
        self.model = MobileV2_MLSD_Large()
        load_file_into(self.model, MLSDdetector.default_checkpoint())
        self.model.eval()

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        array = np.concatenate([resized, np.ones([height, width, 1])], axis=-1)
        array = np.expand_dims(array.transpose(2, 0, 1), 0).astype(np.float32) / 127.5 - 1.0
        maps = self.model(torch.from_numpy(array).float())
        canvas = np.zeros_like(picture)
        for line in self._lines(maps):
            x_1, y_1, x_2, y_2 = (int(value) for value in line)
            cv2.line(canvas, (x_1, y_1), (x_2, y_2), [255, 255, 255], 1)
        return canvas[:, :, 0]

    def _lines(self, maps: torch.Tensor) -> np.ndarray:
        scores = torch.sigmoid(maps[:, 0])
        scores = scores * (F.max_pool2d(scores, 3, stride=1, padding=1) == scores).float()
        best, indices = torch.topk(scores.reshape(-1), 200)
        offsets = maps[0, 1:5].permute(1, 2, 0).numpy()
        lengths = np.sqrt(np.sum((offsets[:, :, :2] - offsets[:, :, 2:]) ** 2, axis=-1))
        lines = []
        for score, index in zip(best.numpy(), indices.numpy(), strict=True):
            y, x = divmod(int(index), maps.shape[3])
            if score > THRESHOLDS[0] and lengths[y, x] > THRESHOLDS[1]:
                lines.append(np.array([x, y, x, y]) + offsets[y, x])
        return 2 * np.array(lines)


def cpu_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, summed over the threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def compare_mlsd(
    size: int = 512, repeats: int = 9, clock: Callable[[Callable[[], object]], float] | None = None
) -> float:
    """Print the medians of both sides on the CPU in float32, and return how many times as fast ours is.

    Args:
        size: side of the picture, in pixels; a multiple of 16.
        clock: seconds of a call, by default wall time.

    Raises:
        RuntimeError: the pictures differ, so that the times cannot be compared.
    """
    clock = clock or (lambda function: seconds(function, CPU))
    picture = picture_of_rooms(size)
    ours, original = MLSDdetector(device=CPU), OriginalWay()
    sides = {"ours": lambda: ours(picture, *THRESHOLDS), "original's way": lambda: original(picture)}
    same = np.mean(sides["ours"]() == sides["original's way"]())  # also warms up
    if same < 0.999:
        raise RuntimeError(f"only {same:.2%} of the pixels are equal: the times cannot be compared")
    times = interleaved({name: lambda side=side: clock(side) for name, side in sides.items()}, repeats)
    print(f"M-LSD, {size}x{size}, fp32, {len(ours.lines(picture, *THRESHOLDS))} lines\n{machine(CPU)}")
    for name, measured in times.items():
        print(f"{name:14}  {median(measured):.3f} s a picture ({min(measured):.3f} to {max(measured):.3f})")
    ratio = median(times["original's way"]) / median(times["ours"])
    print(f"ratio           {ratio:.2f} x, {same:.2%} of the pixels equal")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="side of the picture, in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args()
    if options.processor_time or options.threads:
        torch.set_num_threads(1 if options.processor_time else options.threads)
    compare_mlsd(options.size, options.repeats, cpu_seconds if options.processor_time else None)


if __name__ == "__main__":
    main()
