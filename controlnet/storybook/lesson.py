"""What the trainings of single networks share, each of which has a script of its own: the learning rate, the
trainer, and the command line.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from controlnet.files import CONFIGS
from controlnet.training.callbacks import NonFiniteGuard, Throughput
from controlnet.training.checkpointing import AtomicCheckpointIO, SaveLast
from controlnet.training.precision import find_precision
from ldm.definitions import DefinitionError, read_yaml
from ldm.util import with_schedule

Training = Callable[[DictConfig, Path, Path | None], object]
"""Settings, the folder to write to, and a ``last.ckpt`` to continue from or None."""


def rising_and_falling(optimizer: torch.optim.Optimizer, max_steps: int) -> Any:
    """What ``configure_optimizers`` returns for a rate that rises over 50 steps (or a tenth of a short
    training), and falls to 0 at ``max_steps`` by a cosine.
    """
    steps = {"warmup_steps": min(50, max_steps // 10), "decay_steps": max_steps}
    return with_schedule(
        optimizer, {"target": "controlnet.training.schedules.WarmupSchedule", "params": steps}
    )


def fit(
    module: pl.LightningModule,
    loader: DataLoader,
    settings: DictConfig,
    output: Path,
    resume: str | Path | None,
    held_out: DataLoader | None = None,
) -> None:
    """Train a module to the end, or on from a checkpoint.

    Args:
        settings: ``max_steps``, ``save_every`` and perhaps ``precision``; with ``held_out`` also
            ``validate_every``, in steps.
        output: folder for ``last.ckpt`` and ``metrics.csv``.
        resume: a ``last.ckpt`` to continue from.
        held_out: what to validate on.
    """
    trainer = pl.Trainer(
        max_steps=settings.max_steps,
        precision=cast(Any, find_precision(settings.get("precision", "32-true"), "auto")),
        logger=CSVLogger(output, name=None, version=""),
        log_every_n_steps=10,
        val_check_interval=None if held_out is None else settings.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        plugins=[AtomicCheckpointIO()],
        callbacks=[NonFiniteGuard(), Throughput(), SaveLast(output / "last.ckpt", settings.save_every)],
    )
    trainer.fit(module, loader, held_out, ckpt_path=resume, weights_only=True)


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
