"""Put Stable Diffusion and a ControlNet that comes alone together into one file that every script here loads.

python tool_merge_control.py --base models/v1-5-pruned.ckpt --control models/control_v11p_sd15_seg.pth \\
    --output models/control_v11p_sd15_seg_full.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from controlnet.commands.running import run_alone


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    return run_alone(__doc__, add_arguments, run, arguments, prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", type=Path, required=True, help="Stable Diffusion, or any model with a control"
    )
    parser.add_argument(
        "--control", type=Path, required=True, help="a ControlNet that comes alone, in any layout"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write: .ckpt, .pth or .safetensors"
    )
    parser.add_argument("--config", type=Path, help="model definition (default: the one that fits the base)")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")


def run(options: argparse.Namespace) -> int:
    from cldm.convert_files import merge_control_to_file
    from controlnet.weights.choice import config_for

    config = options.config or config_for(options.base)
    count = merge_control_to_file(
        options.base, options.control, options.output, config, force=options.force, progress=True
    )
    print(f"{count} tensors of the control joined {options.base}")
    print(f"Done: {options.output}")
    return 0
