"""The command-line options by which every front end chooses its model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from controlnet.conditions import DEFAULT, ConditionError, all_conditions, find_condition
from controlnet.generation.devices import PRECISIONS, ModelError
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import ModelFiles, find_model
from controlnet.weights.choice import add_weight_arguments, extras_of
from ldm.weights import WeightsError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, weights, detector, device, precision."""
    parser.add_argument(
        "--model",
        default="auto",
        help="sd15, tiny, a file or folder with Stable Diffusion, or a YAML (default: sd15 if it is there)",
    )
    parser.add_argument("--weights", help="weights of the model, instead of its own; needed with a YAML")
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="[CONDITION=]FILE",
        help="a ControlNet for a condition, by default the one that the file's name says; may be repeated",
    )
    add_weight_arguments(parser, controls=False)
    parser.add_argument("--detector-weights", help="weights of the segmentation, instead of the model's own")
    parser.add_argument("--detector-config", help="its mmseg config; needed for other detectors")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", *PRECISIONS],
        help="(default: fp16 on a GPU, bf16 on a processor that computes it, else fp32)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile: needs a compiler; the first picture of each size takes minutes longer",
    )
    parser.add_argument("--save-memory", action="store_true", help="slower, in less GPU memory")


def files_from_options(options: argparse.Namespace, condition: str = DEFAULT) -> ModelFiles:
    """The files that the options of ``add_model_arguments`` name.

    Raises:
        ModelError, WeightsError: as ``find_model``, and for files that are no control.
    """
    controls = dict(control_argument(text, condition) for text in options.control)
    files = find_model(
        options.model, options.weights, options.detector_weights, options.detector_config, condition, controls
    )
    extras = extras_of(options)
    return replace(files, vae=extras.vae, loras=extras.loras, embeddings=extras.embeddings)


def control_argument(text: str, default: str) -> tuple[str, Path]:
    """``canny=FILE``, or ``FILE`` whose name says the condition, or else for the one that is to steer first.

    Raises:
        ModelError: no such file or condition.
    """
    before, equals, after = text.partition("=")
    if equals and not Path(text).exists():
        try:
            return find_condition(before).name, _there(after)
        except ConditionError as error:
            raise ModelError(f"--control {text}: {error}") from error
    path = _there(text)
    stem = path.stem.lower()
    for name in sorted(all_conditions(), key=len, reverse=True):
        words = (name, *find_condition(name).control_stems())
        if any(word.rpartition("sd15_")[2] in stem for word in words):
            return name, path
    return default, path


def _there(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ModelError(f"--control {text}: there is no such file.")
    return path


def generator_from_options(options: argparse.Namespace, condition: str = DEFAULT) -> Generator:
    """The generator that the options of ``add_model_arguments`` ask for.

    Raises:
        ModelError: as ``find_model`` and ``load_generator``; WeightsError: files that do not fit.
    """
    files = files_from_options(options, condition)
    return load_generator(files, options.device, options.precision, options.save_memory, options.compile)


def generator_or_exit(options: argparse.Namespace, condition: str = DEFAULT) -> Generator:
    """As ``generator_from_options`` for command lines: an error is one line, and the exit status is not 0."""
    try:
        return generator_from_options(options, condition)
    except (ModelError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
