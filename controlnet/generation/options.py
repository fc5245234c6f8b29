"""The command-line options by which every front end chooses its model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from controlnet.conditions import DEFAULT, ConditionError, conditions_of_file, find_condition
from controlnet.generation.devices import PRECISIONS, ModelError
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import ModelFiles, find_model
from controlnet.weights.choice import add_weight_arguments
from ldm.definitions import DefinitionError
from ldm.weights import WeightsError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Files of the model, device, precision."""
    add_file_arguments(parser)
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
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="as --compile, and the GPU repeats recorded work instead of being told each step anew",
    )
    parser.add_argument("--save-memory", action="store_true", help="slower, in less GPU memory")


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, weights, what goes beside them, and the detector; read them with `files_from_options`."""
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
    add_weight_arguments(parser)
    parser.add_argument("--detector-weights", help="weights of the segmentation, instead of the model's own")
    parser.add_argument("--detector-config", help="its mmseg config; needed for other detectors")


def files_from_options(
    options: argparse.Namespace, condition: str = DEFAULT, check: bool = True
) -> ModelFiles:
    """The files that the options of ``add_file_arguments`` name; ``check`` as in ``find_model``.

    Raises:
        ModelError, WeightsError: as ``find_model``, and for files that are no control.
    """
    controls: dict[str, Path] = {}
    for text in options.control:
        controls |= control_argument(text, condition)
    detector = (options.detector_weights, options.detector_config)
    files = find_model(options.model, options.weights, *detector, condition, controls, check)
    return replace(files, vae=options.vae, loras=tuple(options.lora), embeddings=tuple(options.embedding))


def control_argument(text: str, default: str) -> dict[str, Path]:
    """``canny=FILE``, or ``FILE`` for what its name says, or else for the condition that is to steer first.

    Raises:
        ModelError: no such file or condition.
    """
    before, equals, after = text.partition("=")
    if equals and not Path(text).exists():
        try:
            return {find_condition(before).name: _there(after)}
        except ConditionError as error:
            raise ModelError(f"--control {text}: {error}") from error
    path = _there(text)
    return dict.fromkeys(conditions_of_file(path, default), path)


def _there(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ModelError(f"--control {text}: there is no such file.")
    return path


def generator_from_options(
    options: argparse.Namespace, condition: str = DEFAULT, at_once: bool = True
) -> Generator:
    """The generator that the options of ``add_model_arguments`` ask for; ``at_once`` as of `load_generator`.

    Raises:
        ModelError: as ``find_model`` and ``load_generator``; WeightsError: files that do not fit;
            DefinitionError: a YAML file that cannot be used.
    """
    files = files_from_options(options, condition)
    how = (options.device, options.precision, options.save_memory, options.compile, options.cuda_graphs)
    return load_generator(files, *how, at_once=at_once)


@contextmanager
def errors_exit() -> Iterator[None]:
    """For command lines: a model that cannot be had is one line, and the exit status is not 0."""
    try:
        yield
    except (ModelError, WeightsError, DefinitionError) as error:
        raise SystemExit(f"error: {error}") from None
