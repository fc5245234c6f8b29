"""Give Stable Diffusion a control copy of its encoder, to train on.

python tool_add_control.py models/v1-5-pruned.ckpt models/control_sd15_ini.ckpt
python tool_add_control.py models/v2-1_512-ema-pruned.ckpt models/control_sd21_ini.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from controlnet.commands.running import run_alone


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    return run_alone(__doc__, add_arguments, run, arguments, prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="Stable Diffusion: a checkpoint, or a folder of diffusers")
    parser.add_argument("output", type=Path, help="file to write: .ckpt, .pth or .safetensors")
    parser.add_argument("--config", type=Path, help="model definition (default: the one that fits the input)")
    parser.add_argument("--force", action="store_true", help="replace an output that exists")


def run(options: argparse.Namespace) -> int:
    from cldm.convert_files import add_control_to_file
    from controlnet.weights.choice import config_for

    config = options.config or config_for(options.input)
    new = add_control_to_file(options.input, options.output, config, force=options.force, progress=True)
    for key in new:
        print(f"These weights are newly added: {key}")
    print(f"Done: {options.output}")
    return 0
