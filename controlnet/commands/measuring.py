"""What ``tool_evaluate.py`` does when its options are read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from annotator.uniformer import SegmentationDetector
from controlnet.conditions import DEFAULT
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
from controlnet.generation.devices import find_device
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import check_detector_options, known_models
from controlnet.generation.options import files_from_options
from controlnet.generation.sampling import WHOLE_RUN


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
        control_mode=options.control_mode,
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
    return about | how(sampling) | {"precision": generator.precision} | report.scores


def how(sampling: Sampling) -> dict[str, Any]:
    """How pictures were made, ready for JSON: what is usual is left out."""
    said: dict[str, Any] = {"sampler": sampling.sampler, "steps": sampling.steps, "scale": sampling.scale}
    if sampling.guidance_interval != WHOLE_RUN:
        said["guidance_interval"] = list(sampling.guidance_interval)
    if sampling.control_mode != "balanced":
        said["control_mode"] = sampling.control_mode
    return said


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
    about = {"model": generator.name, "count": options.count, "seed": seed}
    return about | how(sampling) | report.scores


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
