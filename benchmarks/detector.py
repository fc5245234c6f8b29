"""Time of the segmentation detector per picture against mmseg's own inference, and of the map validator.

    python -m benchmarks.detector [--size 512] [--precision fp32] [--repeats 5] [--threads 2]
    [--processor-time]

Both sides have the same random weights. The peer is the same network as mmseg runs it: attention by hand,
feature maps enlarged before they are convolved, all classes at the picture's full size. GFLOP/s are of the
multiplications that a side really does; "as asked for" counts the peer's for both. The machine's own figure
is a 3x3 convolution as large as the network's largest.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from annotator.ade20k import colorize
from annotator.uniformer import DEFAULT_CONFIG, UniformerDetector
from annotator.uniformer.segmentor import build_segmentor, read_config
from benchmarks.measure import Clock, cpu_seconds, interleaved, machine, median, seconds
from controlnet.conditions.seg.validator import validate_map
from ldm.weights import load_file_into, save_state_dict

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random_checkpoint(config: Path, path: Path) -> None:
    """Save weights with which the maps have many classes."""
    torch.manual_seed(0)
    model = build_segmentor(config)
    with torch.no_grad():
        model.decode_head.conv_seg.weight *= 30
    save_state_dict(model.state_dict(), path)


def mmseg_labels(config: Path, checkpoint: Path, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """The peer: mmseg's `inference_model` in fp32 on the original's kind of network."""
    settings = read_config(config)
    model = build_segmentor(settings)
    load_file_into(model, checkpoint)
    model.cfg = settings
    model.to(device).eval()
    from mmengine.registry import init_default_scope
    from mmseg.apis import inference_model

    init_default_scope("mmseg")

    def labels(picture: np.ndarray) -> np.ndarray:
        with sdpa_kernel(SDPBackend.MATH):
            return inference_model(model, picture).pred_sem_seg.data[0].cpu().numpy()

    return labels


def flop(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of a call."""
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # fused attention is not counted
        function()
    return counter.get_total_flops()


def attainable(device: torch.device, dtype: torch.dtype, clock: Clock, repeats: int) -> float:
    """GFLOP/s of a 3x3 convolution of 512 channels at 128x128."""
    convolution = nn.Conv2d(512, 512, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 512, 128, 128).to(device, dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        times = [clock(lambda: convolution(x)) for _ in range(repeats + 2)][2:]
    return 2 * 512 * 512 * 9 * 128 * 128 / min(times) / 1e9


def compare_detectors(size: int, precision: str, device: torch.device, clock: Clock, repeats: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (size // 32, size // 32, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "random.safetensors"
        random_checkpoint(DEFAULT_CONFIG, checkpoint)
        detector = UniformerDetector(checkpoint, device=device, dtype=PRECISIONS[precision])
        detector.load()
        peer = mmseg_labels(DEFAULT_CONFIG, checkpoint, device)
    sides = {"ours": lambda: detector.labels(picture), "mmseg": lambda: peer(picture)}
    flops = {name: flop(side) for name, side in sides.items()}  # also warms up
    same = np.mean(sides["ours"]() == sides["mmseg"]())
    if precision == "fp32" and same < 0.999:
        raise RuntimeError(f"only {same:.2%} of the labels are equal: the times cannot be compared")

    times = interleaved({name: lambda s=side: clock(s) for name, side in sides.items()}, repeats)
    for name in sides:
        middle = median(times[name])
        spread = f"{min(times[name]):.3f} to {max(times[name]):.3f}"
        kind = precision if name == "ours" else "fp32"
        rates = f"{flops[name] / middle / 1e9:.0f} GFLOP/s, {flops['mmseg'] / middle / 1e9:.0f} as asked for"
        print(
            f"{name:6} {kind}  {middle:6.3f} s a picture ({spread}), {flops[name] / 1e9:.0f} GFLOP: {rates}"
        )
    print(
        f"ratio        {median(times['mmseg']) / median(times['ours']):6.2f} x, {same:.2%} of the labels "
        "equal"
    )
    print(
        f"convolution  {attainable(device, PRECISIONS[precision], clock, repeats):6.0f} GFLOP/s in "
        f"{precision}"
    )


def time_validator(repeats: int) -> None:
    """One megapixel of 60 areas: processor time, summed over the cores."""
    random = np.random.default_rng(0)
    points = random.integers(0, 1000, (60, 2))
    rows, columns = np.mgrid[:1000, :1000]
    nearest = ((rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2).argmin(
        axis=-1
    )
    labels = random.integers(0, 150, 60, dtype=np.uint8)[nearest]
    colors = colorize(labels)
    with io.BytesIO() as file:
        Image.fromarray(colors).save(file, "JPEG", quality=75)
        lossy = np.asarray(Image.open(file))
    noise = random.integers(0, 256, colors.shape, dtype=np.uint8)
    swapped = np.ascontiguousarray(colors[:, :, ::-1])
    maps = {"clean": colors, "BGR": swapped, "JPEG": lossy, "noise": noise, "indices": labels}
    for name, array in maps.items():
        validate_map(array)
        times = [cpu_seconds(lambda a=array: validate_map(a)) for _ in range(repeats)]
        print(
            f"validator, 1 megapixel, {name:8} {median(times):6.3f} s ({min(times):.3f} to {max(times):.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[512], help="side of the picture, in pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of our side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time of one thread: for a CPU that is busy",
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.processor_time or options.threads:
        torch.set_num_threads(1 if options.processor_time else options.threads)
    clock = cpu_seconds if options.processor_time else lambda function: seconds(function, device)
    warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
    print(f"UPerNet on UniFormer-S, one picture\n{machine(device)}")
    for size in options.size:
        compare_detectors(size, options.precision, device, clock, options.repeats)
    time_validator(options.repeats)


if __name__ == "__main__":
    main()
