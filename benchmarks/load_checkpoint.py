"""Time and peak memory of loading a whole checkpoint: this project's `load_model` against the plain way.

    python -m benchmarks.load_checkpoint
    python -m benchmarks.load_checkpoint --config models/cldm_v21.yaml --folder /some/disk --suffix
    .safetensors

A synthetic file with the keys and shapes of the definition (5.7 GB for SD 1.5 with control) is written to a
temporary folder and deleted at the end. Each way runs in a process of its own; its peak is the kernel's VmHWM
(Linux alone tells it), with Python, all libraries and mapped pages, as a ratio to the size of the file. The
plain way is what the original
did: build the model with random weights, `torch.load` the file, `load_state_dict`. Ways take turns, and the
median of the times counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import interleaved, machine, median

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("ours float32", "ours bfloat16", "ours float16", "plain float32")


def write_checkpoint(config: Path, path: Path) -> None:
    """A file as `tool_add_control.py` would write it, filled with one block of noise over and over."""
    from cldm.model import create_model, parameters_on_meta
    from ldm.weights import save_state_dict

    with parameters_on_meta():
        skeleton = create_model(config).state_dict()
    noise = torch.randn(1_000_003) * 0.02
    state = {}
    for key, tensor in skeleton.items():
        if tensor.is_meta:
            repeats = tensor.numel() // len(noise) + 1
            tensor = noise.repeat(repeats)[: tensor.numel()].clone().view(tensor.shape)
        state[key] = tensor
    save_state_dict(state, path, progress=True)


def load(way: str, config: Path, path: Path) -> None:
    """Load in this process, and print seconds and peak as JSON."""
    import cldm.cldm  # noqa: F401  its libraries are no part of the time
    from cldm.model import create_model, load_model

    start = time.perf_counter()
    who, dtype = way.split()
    if who == "ours":
        model = load_model(config, path, dtype=getattr(torch, dtype))
    else:
        model = create_model(config)
        model.load_state_dict(read_whole(path))
    elapsed = time.perf_counter() - start
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors) or not any(
        p.any() for p in model.control_model.parameters()
    ):
        raise RuntimeError(f"{way}: the model was not loaded")
    # Not getrusage: its maximum also counts the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": elapsed, "peak": peak}))


def read_whole(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        return load(path.read_bytes())
    return torch.load(path, map_location="cpu", weights_only=True)


def measure(way: str, config: Path, path: Path, peaks: dict[str, int]) -> float:
    """Run `load` in a new process; notes its peak and returns its seconds."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.load_checkpoint",
        "--load",
        way,
        str(path),
        "--config",
        str(config),
    ]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    peaks[way] = max(peaks.get(way, 0), result["peak"])
    return result["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "models" / "cldm_v15.yaml")
    parser.add_argument(
        "--folder", type=Path, help="where the file goes for the time of the run (default: temporary)"
    )
    parser.add_argument("--suffix", default=".ckpt", choices=[".ckpt", ".safetensors"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--load", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        load(args.load[0], args.config, Path(args.load[1]))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / f"synthetic{args.suffix}"
        write_checkpoint(args.config, path)
        size, peaks = path.stat().st_size, {}
        sides = {way: lambda way=way: measure(way, args.config.resolve(), path, peaks) for way in args.ways}
        times = interleaved(sides, args.repeats)
    print(machine(torch.device("cpu")))
    print(f"{path.name} of {args.config.name}: {size / 1e9:.2f} GB; median of {args.repeats}")
    for way in args.ways:
        print(f"{way:15} peak {peaks[way] / size:.2f} x the file, {median(times[way]):.1f} s")


if __name__ == "__main__":
    main()
