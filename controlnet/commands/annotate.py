"""Detect the hints of a folder of pictures: python tool_annotate.py FOLDER OUT [--condition canny]
[--prompts].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from annotator.uniformer import SegmentationDetector
from controlnet.annotate import annotate_folder
from controlnet.commands.conditions import add_condition_arguments, condition_options
from controlnet.conditions import DEFAULT, Condition, all_conditions, find_condition
from controlnet.generation.models import known_models

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit status is 0, 1 where pictures failed, 2 where nothing could be done."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Detect the hints of a folder of pictures, as PNG files; for seg colours and indices.",
    )
    parser.add_argument("folder", help="pictures, also in subfolders")
    parser.add_argument("out", help="where hints/ (or colors/ and labels/) and prompt.json go")
    parser.add_argument(
        "--condition",
        default=DEFAULT,
        choices=sorted(all_conditions()),
        help="what to detect (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        help="an mmseg config; its Python code is run (default: the original's network, or the embedded one "
        "where the original's weights are not there)",
    )
    parser.add_argument("--checkpoint", help="weights of the detector, instead of its own")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: fp16 on CUDA, fp32 elsewhere")
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="pictures of one size at a time"
    )
    parser.add_argument("--resolution", type=int, metavar="PIXELS", help="resize the short side first")
    parser.add_argument("--prompts", action="store_true", help="write the prompt.json that training reads")
    add_condition_arguments(parser)
    options = parser.parse_args(arguments)

    try:
        condition = make_condition(options)
        report = annotate_folder(
            options.folder,
            options.out,
            condition,
            options=condition_options(options, options.condition),
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


def make_condition(options: argparse.Namespace) -> Condition:
    """The condition with its detector.

    Raises:
        ValueError: a config for a condition that has none.
    """
    known = find_condition(options.condition)
    if options.condition != DEFAULT:
        if options.config is not None:
            raise ValueError(f"--config is for the detectors of --condition {DEFAULT} alone.")
        return known(device=options.device, weights=options.checkpoint)
    checkpoint, config = options.checkpoint, options.config
    if checkpoint is None and config is None:
        checkpoint, config = default_detector()
    return known(SegmentationDetector(checkpoint, config, options.device, PRECISIONS.get(options.precision)))


def default_detector() -> tuple[Path, Path | None]:
    """Weights and config of the original's detector, or of the embedded one where those are not there."""
    original, embedded = known_models()["sd15"], known_models()["tiny"]
    if original.detector_weights.is_file():
        return original.detector_weights, original.detector_config
    print(
        f"There is no {original.detector_weights}: the embedded detector is used, for drawn scenes only.",
        file=sys.stderr,
    )
    return embedded.detector_weights, embedded.detector_config
