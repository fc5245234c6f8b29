"""Put Stable Diffusion and a ControlNet that comes alone together into one file that every script here loads.

python tool_merge_control.py --base models/v1-5-pruned.ckpt --control models/control_v11p_sd15_seg.pth \\
    --output models/control_v11p_sd15_seg_full.pth
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", type=Path, required=True, help="Stable Diffusion, or any model with a control"
    )
    parser.add_argument(
        "--control", type=Path, required=True, help="ControlNet 1.1, or a control-only checkpoint"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write: .ckpt, .pth or .safetensors"
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    args = parser.parse_args(arguments)

    from cldm.convert_files import merge_control_to_file

    try:
        count = merge_control_to_file(args.base, args.control, args.output, force=args.force, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} tensors of the control joined {args.base}")
    print(f"Done: {args.output}")
    return 0
