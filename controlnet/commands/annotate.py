"""Segment a folder of pictures: python tool_annotate.py FOLDER OUT [--prompts]. See docs/detector.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from annotator.uniformer import UniformerDetector
from controlnet.annotate import annotate_folder

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 where pictures failed, 2 where nothing could be done."""
    parser = argparse.ArgumentParser(
        description="Segment a folder of pictures into colour and index maps (PNG)."
    )
    parser.add_argument("folder", help="pictures, also in subfolders")
    parser.add_argument("out", help="where colors/, labels/ and prompt.json go")
    parser.add_argument(
        "--config", help="an mmseg config; its Python code is run (default: the original's network)"
    )
    parser.add_argument("--checkpoint", help="weights that belong to the config")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on CUDA, fp32 elsewhere")
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="pictures of one size at a time"
    )
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="resize the short side first")
    parser.add_argument("--prompts", action="store_true", help="write the prompt.json that training reads")
    options = parser.parse_args(arguments)

    detector = UniformerDetector(
        options.checkpoint, options.config, options.device, PRECISIONS.get(options.precision)
    )
    try:
        report = annotate_folder(
            options.folder,
            options.out,
            detector,
            batch_size=options.batch_size,
            resolution=options.resolution,
            prompts=options.prompts,
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{report.annotated} annotated, {report.skipped} done before, {len(report.failed)} failed")
    for path, reason in report.failed:
        print(f"{path}: {reason}", file=sys.stderr)
    return 1 if report.failed else 0
