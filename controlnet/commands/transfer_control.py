"""Move a control from the model it was trained on to another of the same architecture, by the offset of their
weights.

python tool_transfer_control.py --base models/v1-5-pruned.ckpt --control models/control_sd15_seg.pth \\
    --target models/anything-v3-full.safetensors --output models/control_any3_seg.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from controlnet.commands.running import run_alone


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    return run_alone(__doc__, add_arguments, run, arguments, prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, required=True, help="the model that the control was trained on")
    parser.add_argument("--control", type=Path, required=True, help="the control, alone or in a whole model")
    parser.add_argument("--target", type=Path, required=True, help="the model to be steered")
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write: .ckpt, .pth or .safetensors"
    )
    parser.add_argument(
        "--config", type=Path, help="model definition (default: the one that fits the target)"
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")


def run(options: argparse.Namespace) -> int:
    from cldm.convert_files import transfer_control_to_file
    from controlnet.weights.choice import config_for

    paths = (options.base, options.control, options.target, options.output)
    config = options.config or config_for(options.target)
    borrowed = transfer_control_to_file(*paths, config, force=options.force, progress=True)
    for prefix, part in (("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")):
        if count := sum(key.startswith(prefix) for key in borrowed):
            print(
                f"{options.target} lacks {count} keys of the {part}; they were taken from {options.control}"
            )
    print(f"Done: {options.output}")
    return 0
