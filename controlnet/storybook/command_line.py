"""The command line that trainings with a script of their own share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from controlnet.files import CONFIGS
from ldm.definitions import DefinitionError, read_yaml

Training = Callable[[DictConfig, Path, Path | None], object]
"""Settings, the folder to write to, and a ``last.ckpt`` to continue from or None."""


def run_training(
    train: Training, module: str, config: str, description: str, arguments: Sequence[str] | None = None
) -> None:
    """Read the settings of a training from a YAML file and the command line, and train.

    Args:
        train: does the work.
        module: in ``controlnet.storybook``, for the help.
        config: name of the default settings in ``configs/train``, and of the default folder in ``outputs``.
        description: for the help.
        arguments: of the command line, by default the program's own.
    """
    parser = argparse.ArgumentParser(prog=f"python -m controlnet.storybook.{module}", description=description)
    default = CONFIGS / "train" / f"{config}.yaml"
    parser.add_argument("--config", type=Path, default=default, help=f"(default configs/train/{config}.yaml)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs") / config,
        help="folder to write to (default %(default)s)",
    )
    parser.add_argument("--resume", type=Path, help="a last.ckpt to continue from")
    parser.add_argument("settings", nargs="*", help="changed settings, such as max_steps=100 batch_size=8")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings, changes = read_yaml(options.config), OmegaConf.from_dotlist(options.settings)
    except DefinitionError as error:
        parser.error(str(error))
    if unknown := sorted(set(changes) - set(settings)):
        parser.error(f"no such setting: {', '.join(unknown)}; there are {', '.join(settings)}")
    train(cast(DictConfig, OmegaConf.merge(settings, changes)), options.output, options.resume)
