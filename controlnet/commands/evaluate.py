"""Measure a model: does it keep to map and prompt? python tool_evaluate.py --count 100 --json scores.json

Scenes are drawn from seeds that training never saw, or read from a folder like those that tutorial_train.py
reads. The same command measures Stable Diffusion with the ADE20K detector: --model sd15 --folder FOLDER.
How pictures agree with their prompts is told of drawn scenes, and of a folder where --model is tiny.
--condition canny steers by edges instead of maps, --condition all by one condition after the other; the maps
of what came out are compared all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from controlnet.conditions import DEFAULT, all_conditions
from controlnet.generation.devices import ModelError
from controlnet.generation.options import add_model_arguments
from controlnet.generation.samplers import DEFAULT_SAMPLER, SAMPLERS
from controlnet.generation.sampling import WHOLE_RUN
from controlnet.generation.several import MODES
from ldm.weights import WeightsError


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.set_defaults(model="tiny")
    parser.add_argument("--count", type=int, default=100, help="how many scenes (default 100)")
    parser.add_argument(
        "--seed", type=int, help="of the first scene (default: the first held out of training)"
    )
    parser.add_argument("--folder", type=Path, help="a data set with maps, instead of drawn scenes")
    parser.add_argument("--hint-kind", default="color-map", help="its maps: color-map or class-index")
    parser.add_argument(
        "--condition",
        default=DEFAULT,
        help=f"what steers: a condition, {DEFAULT} by default, or all that drawn scenes have hints of",
    )
    parser.add_argument("--sampler", choices=list(SAMPLERS), default=DEFAULT_SAMPLER, help="(default: ddim)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default 20)")
    for name, default in zip(("start", "end"), WHOLE_RUN, strict=True):
        what = f"guidance from or to this share of the steps (default {default:g})"
        parser.add_argument(f"--guidance-{name}", type=float, default=default, help=what)
    parser.add_argument(
        "--scale", type=float, help="of guidance (default: what the page offers for the model)"
    )
    parser.add_argument(
        "--control-mode", choices=list(MODES), default="balanced", help="as on the page (default: balanced)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="pictures made at a time (default 8)")
    parser.add_argument(
        "--detector-only", action="store_true", help="score the detector alone; needs no model"
    )
    parser.add_argument(
        "--per-class",
        action="store_true",
        help="name the colours of two or three things in one sentence, and in a prompt for each class",
    )
    parser.add_argument(
        "--second-detector",
        type=Path,
        help="config of another mmseg network, whose weights lie where it says, that judges the first one's "
        "verdict (for tiny there is one)",
    )
    parser.add_argument("--json", type=Path, help="file for the scores")
    parser.add_argument("--grid", type=Path, help="PNG for a sheet of pictures to look at")
    options = parser.parse_args(arguments)
    if options.count < 1 or options.steps < 1 or options.batch_size < 1:
        parser.error("--count, --steps and --batch-size must be at least 1")
    if not 0 <= options.guidance_start <= options.guidance_end <= 1:
        parser.error("--guidance-start must not be above --guidance-end, both from 0 to 1")
    if options.condition not in (*all_conditions(), "all"):
        parser.error(
            f"--condition must be all or one of {', '.join(all_conditions())}, got {options.condition}"
        )
    if options.grid and options.grid.suffix.lower() != ".png":
        parser.error(f"--grid wants a file that ends in .png, got {options.grid}")
    from controlnet.commands.measuring import measure  # torchmetrics takes seconds to import

    cv2.setNumThreads(1)
    try:
        for file in filter(None, (options.json, options.grid)):  # now, not when all is measured
            if file.is_dir():
                raise ValueError(f"{file} is a folder; a file is wanted.")
            file.parent.mkdir(parents=True, exist_ok=True)
        scores = measure(options)
    except (ModelError, WeightsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_scores(scores)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return 0


def print_scores(scores: Mapping[str, Any]) -> None:
    """A line for each score, and for several conditions a table."""
    for name, value in scores.items():
        if name in ("conditions", "ways"):
            continue
        print(f"{name:18} {value:.4f}" if isinstance(value, float) else f"{name:18} {value}")
    if ways := scores.get("ways"):
        aspects = list(dict.fromkeys(name for way in ways.values() for name in way))
        print(" ".join([f"{'named':22}", *(f"{aspect:>8}" for aspect in aspects)]))
        for name, way in ways.items():
            print(" ".join([f"{name:22}", *(f"{way.get(aspect, 0):8.4f}" for aspect in aspects)]))
    if table := scores.get("conditions"):
        columns = ("control_miou", "of_seg", "prompt_accuracy", "adherence")
        print(" ".join([f"{'condition':18}", *(f"{column:>15}" for column in columns)]))
        for name, row in table.items():
            cells = ("-" if row[column] is None else f"{row[column]:.4f}" for column in columns)
            print(" ".join([f"{name:18}", *(f"{cell:>15}" for cell in cells)]))
