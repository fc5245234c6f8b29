"""Write weights in another layout, type or format, or a control without its model.

python tool_convert.py models/control_sd15_seg.pth models/seg.safetensors --part control --dtype fp16
python tool_convert.py models/control_sd15_seg.pth models/seg_diffusers --layout diffusers
python tool_convert.py models/seg_diffusers models/seg_full.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from controlnet.commands.running import run_alone


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    return run_alone(__doc__, add_arguments, run, arguments, prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="a checkpoint, or a folder of diffusers")
    parser.add_argument(
        "output",
        type=Path,
        help="file to write: .safetensors, .pth, .ckpt or .safetensors.index.json; a folder for diffusers",
    )
    parser.add_argument("--config", type=Path, help="model definition (default: the one that fits the input)")
    parser.add_argument(
        "--layout", choices=["original", "diffusers"], default="original", help="(default: original)"
    )
    parser.add_argument("--part", choices=["whole", "control"], help="(default: all that the input holds)")
    parser.add_argument(
        "--dtype", choices=["fp32", "fp16", "bf16"], help="type of the weights (default: the input's)"
    )
    parser.add_argument("--shard-size", type=float, metavar="GB", help="split files that are larger")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")


def run(options: argparse.Namespace) -> int:
    from cldm.convert_files import DTYPES, Form, convert_file
    from controlnet.weights.choice import config_for

    if options.shard_size is not None and options.shard_size <= 0:
        raise ValueError(f"--shard-size {options.shard_size}: expected a number above 0")
    form = Form(
        layout=options.layout,
        part=options.part,
        dtype=DTYPES[options.dtype] if options.dtype else None,
        shard_bytes=int(options.shard_size * 1e9) if options.shard_size else None,
    )
    config = options.config or config_for(options.input)
    what = convert_file(options.input, options.output, config, form, force=options.force, progress=True)
    print(f"Done: {options.output}: {what}")
    return 0
