"""Move a control from the model it was trained on to another of the same architecture, by the offset of their
weights.

python tool_transfer_control.py --base models/v1-5-pruned.ckpt --control models/control_sd15_seg.pth \\
    --target models/anything-v3-full.safetensors --output models/control_any3_seg.pth
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
    parser.add_argument("--base", type=Path, required=True, help="the model that the control was trained on")
    parser.add_argument(
        "--control", type=Path, required=True, help="the control: a whole model, or control_model.*"
    )
    parser.add_argument("--target", type=Path, required=True, help="the model to be steered")
    parser.add_argument(
        "--output", type=Path, required=True, help="file to write: .ckpt, .pth or .safetensors"
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    args = parser.parse_args(arguments)

    from cldm.convert_files import transfer_control_to_file

    try:
        borrowed = transfer_control_to_file(
            args.base, args.control, args.target, args.output, force=args.force, progress=True
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for prefix, part in (("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")):
        if count := sum(key.startswith(prefix) for key in borrowed):
            print(f"{args.target} lacks {count} keys of the {part}; they were taken from {args.control}")
    print(f"Done: {args.output}")
    return 0
