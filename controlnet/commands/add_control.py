"""Give Stable Diffusion a control copy of its encoder, to train on.

python tool_add_control.py models/v1-5-pruned.ckpt models/control_sd15_ini.ckpt
python tool_add_control.py models/v2-1_512-ema-pruned.ckpt models/control_sd21_ini.ckpt --config
models/cldm_v21.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from controlnet.files import MODELS


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", type=Path, help="Stable Diffusion: .ckpt, .pth or .safetensors")
    parser.add_argument("output", type=Path, help="file to write: .ckpt, .pth or .safetensors")
    default = MODELS / "cldm_v15.yaml"
    parser.add_argument(
        "--config", type=Path, default=default, help="model definition (default: models/cldm_v15.yaml)"
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    args = parser.parse_args(arguments)

    from cldm.convert_files import add_control_to_file

    try:
        new = add_control_to_file(args.input, args.output, args.config, force=args.force, progress=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for key in new:
        print(f"These weights are newly added: {key}")
    print(f"Done: {args.output}")
    return 0
