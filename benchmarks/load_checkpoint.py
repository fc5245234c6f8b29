"""Time and peak memory of loading a whole checkpoint: this project's `load_model` against torch alone.

    python -m benchmarks.load_checkpoint
    python -m benchmarks.load_checkpoint --suffix .safetensors --file-dtype float16 --folder /some/disk

A synthetic file with the keys and shapes of the definition (5.7 GB for SD 1.5 with control in float32) is
written to a temporary folder and deleted at the end. Each way runs in a process of its own, and they take
turns; the median of the times counts. The peak is the kernel's VmHWM (Linux alone tells it), with Python, all
libraries and mapped pages, as a ratio to the size of the file. ``--processor-time`` counts that instead of
wall time, for machines that are busy.

``mmap`` is the least that can be done: a model without numbers, `torch.load(mmap=True)` or safetensors'
`load_file`, and `load_state_dict(assign=True)`. Nothing is read then, or checked, and the weights go on to
depend on the file; so the time is also taken after each weight was read once, which whoever uses the model
does. ``plain`` is what the original did: a model with random weights, `torch.load`, `load_state_dict`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import interleaved, machine, median, process_memory

ROOT = Path(__file__).resolve().parent.parent
TYPES = ("float32", "bfloat16", "float16")
WAYS = (*(f"ours {name}" for name in TYPES), *(f"mmap {name}" for name in TYPES), "plain float32")


def write_checkpoint(config: Path, path: Path, dtype: torch.dtype) -> None:
    """A file as `tool_add_control.py` would write it, filled with one block of noise over and over."""
    from cldm.model import create_model, parameters_on_meta
    from ldm.weights import save_state_dict

    with parameters_on_meta():
        skeleton = create_model(config).state_dict()
    noise = (torch.randn(1_000_003) * 0.02).to(dtype)
    state = {}
    for key, tensor in skeleton.items():
        if tensor.is_meta:
            repeats = tensor.numel() // len(noise) + 1
            tensor = noise.repeat(repeats)[: tensor.numel()].clone().view(tensor.shape)
        state[key] = tensor
    save_state_dict(state, path, progress=True)


def load(way: str, config: Path, path: Path, clock: Callable[[], float]) -> None:
    """Load in this process, and print seconds, those until all is read, and the peak as JSON."""
    import transformers.models.clip.modeling_clip  # noqa: F401  libraries are no part of the time

    import cldm.cldm  # noqa: F401
    from cldm.model import load_model

    who, name = way.split()
    dtype = getattr(torch, name)
    start = clock()
    if who == "ours":
        model: nn.Module = load_model(config, path, dtype=dtype)
    else:
        model = mapped(config, path, dtype) if who == "mmap" else plain(config, path)
    loaded = clock() - start
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise RuntimeError(f"{way}: the model was not loaded")
    with torch.inference_mode():  # the cheapest way to read each number once
        zeros = [tensor for tensor in tensors if not any(tensor.aminmax())]
    read = clock() - start
    if len(zeros) > len(tensors) // 2:
        raise RuntimeError(f"{way}: the model was not loaded")
    # Not getrusage: its maximum also counts the process that started this one.
    print(json.dumps({"loaded": loaded, "read": read, "peak": process_memory("VmHWM")}))


def mapped(config: Path, path: Path, dtype: torch.dtype) -> nn.Module:
    """Torch's own way that does least; a cast to another type is the only copy."""
    from cldm.model import create_model, parameters_on_meta

    with parameters_on_meta():
        model = create_model(config)
    model.load_state_dict(read_file(path, mmap=True), assign=True)
    return model.to(dtype)


def plain(config: Path, path: Path) -> nn.Module:
    """The original's way."""
    from cldm.model import create_model

    model = create_model(config)
    model.load_state_dict(read_file(path, mmap=False))
    return model


def read_file(path: Path, mmap: bool) -> dict[str, torch.Tensor]:
    """The tensors of a file, by the library that wrote it."""
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    from safetensors.torch import load, load_file

    return load_file(path) if mmap else load(path.read_bytes())


def measure(way: str, options: Sequence[str], taken: dict[str, list[dict[str, float]]]) -> float:
    """Run `load` in a new process; notes what it says and returns its seconds."""
    command = [sys.executable, "-m", "benchmarks.load_checkpoint", *options]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    taken[way].append(result)
    return result["loaded"]


def report(way: str, taken: dict[str, list[dict[str, float]]], size: int) -> str:
    """A line; of ours also how many times as fast as torch's own way it is at the same type."""
    loaded, read = (median([result[when] for result in taken[way]]) for when in ("loaded", "read"))
    peak = max(result["peak"] for result in taken[way])
    line = f"{way:15} peak {peak / size:.2f} x the file, {loaded:.2f} s, {read:.2f} s until all is read"
    peer = taken.get(way.replace("ours", "mmap"), [])
    if way.startswith("ours") and peer:
        ratio = median([result["read"] for result in peer]) / read
        line += f"\nMMAP ratio {ratio:.2f} x, {way} until all is read"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "models" / "cldm_v15.yaml")
    parser.add_argument(
        "--folder", type=Path, help="where the file goes for the time of the run (default: temporary)"
    )
    parser.add_argument("--suffix", default=".ckpt", choices=[".ckpt", ".safetensors"])
    parser.add_argument("--file-dtype", default="float32", choices=TYPES, help="of the weights in the file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--load", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        clock = time.process_time if args.processor_time else time.perf_counter
        load(args.load[0], args.config, Path(args.load[1]), clock)
        return
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / f"synthetic{args.suffix}"
        write_checkpoint(args.config, path, getattr(torch, args.file_dtype))
        size = path.stat().st_size
        options = [str(path), "--config", str(args.config.resolve())]
        options += ["--processor-time"] if args.processor_time else []
        ways = {way: lambda way=way: measure(way, ["--load", way, *options], taken) for way in args.ways}
        interleaved(ways, args.repeats)
    print(machine(torch.device("cpu")))
    name = f"{path.name} of {args.config.name} in {args.file_dtype}"
    print(f"{name}: {size / 1e9:.2f} GB; median of {args.repeats}")
    for way in args.ways:
        print(report(way, taken, size))


if __name__ == "__main__":
    main()
