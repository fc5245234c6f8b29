"""From the files that a person names to the arguments of :func:`cldm.model.load_model`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cldm.model import load_config
from controlnet.files import MODELS
from ldm.layouts.recognise import expect, recognise
from ldm.weights import WeightsError

DEFINITIONS = ("cldm_v15.yaml", "cldm_v21.yaml", "tiny/cldm_tiny.yaml")
"""The definitions in ``models`` that files are matched with."""


def config_for(weights: str | Path) -> Path:
    """The YAML definition of a model, or of the model that a control steers: by the width of its text
    embeddings and its channels.

    Raises:
        WeightsError: the file is neither, or none of the definitions is its own.
    """
    path = Path(weights)
    kind = recognise(path)
    expect(path, kind, "model", "control")
    for name in DEFINITIONS:
        if _numbers_of(MODELS / name) == (kind.width, kind.channels, kind.model_channels):
            return MODELS / name
    raise WeightsError(
        f"{path}: this is {kind}, with {kind.model_channels} channels in its first level: none of the "
        f"definitions {', '.join(DEFINITIONS)} is its own; give its YAML with --config"
    )


def _numbers_of(definition: Path) -> tuple[int, int, int]:
    unet = load_config(definition).model.params.unet_config.params
    return unet.context_dim, unet.in_channels, unet.model_channels


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name weights beside a model and its controls: ``vae``, ``lora``, ``embedding``."""
    parser.add_argument("--vae", type=Path, metavar="FILE", help="a VAE instead of the model's own")
    parser.add_argument(
        "--lora",
        type=lora_argument,
        action="append",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="a LoRA to merge into the model, and how much of it (default 1); may be repeated",
    )
    parser.add_argument(
        "--embedding",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a textual inversion, used by its file's name in prompts; may be repeated",
    )


def lora_argument(text: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:WEIGHT`` -> the path and the weight (1 where there is none)."""
    name, colon, weight = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return Path(name), float(weight)
        except ValueError:
            pass  # a colon in the name
    return Path(text), 1.0
