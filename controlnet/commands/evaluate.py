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
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image

from annotator.uniformer import SegmentationDetector
from controlnet.conditions import DEFAULT, all_conditions
from controlnet.evaluate.evaluation import (
    Case,
    Sampling,
    detector_score,
    evaluate,
    read_cases,
    steered,
    with_hints,
)
from controlnet.evaluate.grid import sheet, stack
from controlnet.evaluate.per_class import compare_ways
from controlnet.files import CONFIGS
from controlnet.generation.devices import ModelError, find_device
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import check_detector_options, known_models
from controlnet.generation.options import add_model_arguments, files_from_options
from controlnet.generation.samplers import DEFAULT_SAMPLER, SAMPLERS
from controlnet.generation.sampling import WHOLE_RUN
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


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and its scores; draws the sheet along the way."""
    if options.detector_only:
        check_detector_options(options.detector_weights, options.detector_config)
        files = known_models().get(options.model) or known_models()["tiny"]
        weights = options.detector_weights or files.detector_weights
        device = find_device(options.device)
        detector = SegmentationDetector(weights, options.detector_config or files.detector_config, device)
        cases, source = find_cases(options, files.resolution)
        about = {"detector": str(weights), "count": len(cases), **source}
        return about | detector_score(detector, cases)
    files = files_from_options(options)
    faster = {"compiles": options.compile, "graphs": options.cuda_graphs}
    generator = load_generator(files, options.device, options.precision, **faster)
    model, detector = generator.model, generator.condition("seg").detector
    if not options.per_class:
        cases, source = find_cases(options, generator.resolution)
    scale = files.guidance if options.scale is None else options.scale
    first = DEFAULT if options.condition == "all" else options.condition
    sampling = Sampling(
        options.steps,
        scale,
        options.batch_size,
        sampler=options.sampler,
        network=generator.controls.network(first),
        guidance_interval=(options.guidance_start, options.guidance_end),
    )
    if options.per_class:
        return per_class(options, generator, sampling)
    keep, condition = 8 if options.grid else 0, generator.condition(first)
    second = second_detector(options, generator.device)
    report = evaluate(model, detector, cases, sampling, condition, keep, second=second)
    if options.condition == "all":
        report.scores["conditions"] = compare_conditions(generator, cases, sampling, report.scores)
    if options.grid:
        picture = sheet(model, with_hints(cases, generator.condition(first)), report.generated, sampling)
        Image.fromarray(picture).save(options.grid)
    about = {"model": files.name, "condition": options.condition, "count": len(cases), **source}
    about |= {"sampler": options.sampler, "steps": options.steps, "scale": scale}
    if sampling.guidance_interval != WHOLE_RUN:
        about["guidance_interval"] = list(sampling.guidance_interval)
    about["precision"] = generator.precision
    return about | report.scores


def second_detector(options: argparse.Namespace, device: torch.device) -> SegmentationDetector | None:
    """The one that was asked for, or that of the embedded model."""
    config = options.second_detector
    if config is None and options.model == "tiny":
        config = CONFIGS / "annotator" / "unet_tiny.py"
    return None if config is None else SegmentationDetector(config=config, device=device)


def per_class(options: argparse.Namespace, generator: Generator, sampling: Sampling) -> dict[str, Any]:
    """How often single things have the colour that they should, by the way in which it is asked for."""
    from controlnet.storybook.cases import colour_cases
    from controlnet.storybook.dataset import HELD_OUT_SEED

    seed = HELD_OUT_SEED if options.seed is None else options.seed
    ways = colour_cases(options.count, seed, generator.resolution)
    report = compare_ways(generator.model, ways, sampling, keep=8 if options.grid else 0)
    if options.grid:
        Image.fromarray(stack([[row] for row in report.generated.values()])).save(options.grid)
    about = {"model": generator.name, "count": options.count, "seed": seed, "sampler": options.sampler}
    return about | {"steps": options.steps, "scale": sampling.scale} | report.scores


def compare_conditions(
    generator: Generator, cases: Sequence[Case], sampling: Sampling, seg: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """`steered`'s scores by condition, and ``of_seg``, the share of what maps reach."""
    from controlnet.storybook.hints import SHARES

    table = {DEFAULT: dict(seg)}
    for name in SHARES:
        if name != DEFAULT:
            way = replace(sampling, network=generator.controls.network(name))
            condition, detector = generator.condition(name), generator.condition(DEFAULT).detector
            table[name] = steered(generator.model, detector, cases, way, condition).scores
    keys = ("control_miou", "prompt_accuracy", "prompt_accuracy_of", "adherence", "control_iou")
    return {
        name: {"of_seg": 1.0 if name == DEFAULT else scores["control_miou"] / max(seg["control_miou"], 1e-9)}
        | {key: scores[key] for key in keys}
        for name, scores in table.items()
    }


def find_cases(options: argparse.Namespace, size: int) -> tuple[list[Case], dict[str, Any]]:
    """The pictures of the folder that was given, or drawn scenes; and where they come from."""
    if options.folder:
        cases = read_cases(options.folder, options.count, size, options.hint_kind)
        if options.model == "tiny":  # knows drawn scenes only, so these are some
            from controlnet.storybook.cases import with_judge

            cases = [with_judge(case) for case in cases]
        return cases, {"folder": str(options.folder)}
    from controlnet.storybook.cases import draw_cases
    from controlnet.storybook.dataset import HELD_OUT_SEED

    seed = HELD_OUT_SEED if options.seed is None else options.seed
    return draw_cases(options.count, seed, size), {"seed": seed}
