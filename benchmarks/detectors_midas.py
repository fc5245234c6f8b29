"""Time of the depth detector per picture against the original's way.

    python -m benchmarks.detectors_midas [--size 384 512] [--repeats 9] [--processor-time]

The original's way is transformers' own DPT hybrid with the same random weights: softmax attention by hand,
the backbone's weights standardised in every pass, default memory format. Both sides make both maps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from annotator.midas import MidasDetector, depth_picture, normal_picture
from annotator.midas.config import config_of, dpt_config
from annotator.midas.network import DepthNetwork
from annotator.midas.released import to_transformers
from benchmarks.measure import interleaved, machine, median, seconds
from ldm.weights import read_state_dict, save_state_dict

Clock = Callable[[Callable[[], object]], float]
CPU = torch.device("cpu")


def random_checkpoint(path: Path) -> None:
    """Save a network as wide as the released one, with weights that give depth above 0."""
    torch.manual_seed(0)
    config = dpt_config(
        stem=64,
        widths=(256, 512, 1024),
        depths=(3, 4, 9),
        hidden_size=768,
        layers=12,
        mlp=3072,
        side=24,
        laterals=(256, 512, 768, 768),
        fusion=256,
    )
    state = DepthNetwork(config).state_dict()
    state["scratch.output_conv.4.weight"] *= 100  # else rounding would hide in a depth that hardly varies
    state["scratch.output_conv.4.bias"].fill_(3)
    save_state_dict(state, path)


def original_depth(checkpoint: Path, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """The peer: a picture of one size -> its raw depth."""
    from transformers import DPTForDepthEstimation

    state = read_state_dict(checkpoint)
    config = config_of(state, checkpoint)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        network = DPTForDepthEstimation(config)
    network.load_state_dict(to_transformers(state), assign=True)
    network.eval().dpt.embeddings.image_size = (size, size)

    @torch.no_grad()
    def depth(picture: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(picture).float() / 127.5 - 1
        return network(x.permute(2, 0, 1)[None].contiguous()).predicted_depth[0].numpy()

    return depth


def cpu_seconds(function: Callable[[], object]) -> float:
    """Processor time of one call, summed over the threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def compare_depth(size: int = 512, repeats: int = 9, clock: Clock = lambda call: seconds(call, CPU)) -> float:
    """Print the times of both sides in float32 on a CPU, taking turns.

    Returns:
        how many times as fast ours is.

    Raises:
        RuntimeError: the depths are not the same.
    """
    picture = np.random.default_rng(0).integers(0, 256, (size // 32, size // 32, 3), dtype=np.uint8)
    picture = np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.safetensors"
        random_checkpoint(checkpoint)
        detector = MidasDetector(checkpoint, CPU)
        detector.load()
        theirs = original_depth(checkpoint, size)
    ours, expected = detector.depth(picture), theirs(picture)  # also warms up
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    if not error < 5e-5:
        raise RuntimeError(f"the depths differ by {error:.1e}: the times cannot be compared")

    def original(picture: np.ndarray) -> None:
        depth = theirs(picture)
        depth_picture(depth)
        normal_picture(depth)

    sides = {"ours": lambda: detector(picture), "original": lambda: original(picture)}
    times = interleaved({name: lambda side=side: clock(side) for name, side in sides.items()}, repeats)
    for name, values in times.items():
        print(f"{name:9} {median(values):6.3f} s a picture ({min(values):.3f} to {max(values):.3f})")
    ratio = median(times["original"]) / median(times["ours"])
    print(f"ratio     {ratio:6.2f} x at {size}x{size}, relative difference {error:.1e}")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, nargs="+", default=[384, 512], help="side of the picture, in pixels"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
    clock = cpu_seconds if options.processor_time else lambda call: seconds(call, CPU)
    print(f"DPT hybrid, float32, one picture\n{machine(CPU)}")
    for size in options.size:
        compare_depth(size, options.repeats, clock)


if __name__ == "__main__":
    main()
