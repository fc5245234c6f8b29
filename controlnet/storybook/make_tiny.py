"""Makes the embedded model: every step of ``controlnet/storybook/README.md``, in order.

``python -m controlnet.storybook.make_tiny`` may be stopped at any time. Started again, it skips the steps
that are done and continues the one that was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from annotator.util import annotator_ckpts_path
from cldm.convert_files import add_control_to_file
from controlnet import files
from controlnet.storybook.dataset import write_dataset
from controlnet.storybook.export import export
from controlnet.storybook.normalize_latents import normalize_file
from controlnet.storybook.train_detector import train_detector
from controlnet.storybook.train_text import train_text
from controlnet.training.run import train
from controlnet.training.settings import Settings
from ldm.atomic import atomic_write

MODELS = files.MODELS / "tiny"
CONFIGS = files.CONFIGS / "train"
SCENES = 3200  # that the UNet and its control copy learn from, encoded once
MORE_SCENES = 6400  # of the last rounds, with those among them

logger = logging.getLogger(__name__)


def train_step(name: str, output: Path, length: float, changes: dict[str, Any]) -> Path:
    """Train by ``configs/train/NAME.yaml``, or continue that training; returns the checkpoint.

    Args:
        name: of the settings, and of the folder in ``output``.
        output: folder of all steps.
        length: factor of the settings' ``max_steps`` and warm-up.
        changes: other settings than those of the file.
    """
    settings = Settings().from_yaml(CONFIGS / f"{name}.yaml")
    fields = {spec.name for spec in dataclasses.fields(Settings)}
    changes = {key: value for key, value in changes.items() if key in fields}
    for path in ("model", "data"):
        changes.setdefault(path, str(files.ROOT / getattr(settings, path)))
    if settings.cache_latents:
        changes |= {"data": str(output / Path(settings.data).name), "cache": str(output / "storybook_cache")}
    steps = max(2, round(settings.max_steps * length))
    warmup = min(round(settings.warmup_steps * length), steps - 1)
    settings = dataclasses.replace(
        settings, output=str(output / name), max_steps=steps, warmup_steps=warmup, **changes
    )
    checkpoint = settings.last_checkpoint
    _train_to_the_end(lambda resume: train(dataclasses.replace(settings, resume=resume)), checkpoint, steps)
    return checkpoint


def make_tiny(
    output: Path,
    models: Path = MODELS,
    detectors: Path = Path(annotator_ckpts_path),
    length: float = 1.0,
    **changes: Any,
) -> None:
    """Train and export the embedded model and its detector.

    Args:
        output: folder for checkpoints, logs and intermediate files.
        models: where the model's weights go.
        detectors: where the detector's weights go.
        length: factor of every step's length. It must not change once a step has begun, since its learning
            rate falls to 0 at its end.
        changes: settings such as ``precision`` or ``workers``, for every step that has them.
    """
    vae = train_step("tiny_vae", output, length, dict(changes))
    normal = output / "tiny_vae" / "vae.safetensors"
    autoencoder = MODELS / "autoencoder_tiny.yaml"
    scenes = max(8, min(200, round(200 * length)))
    _once(normal, lambda: normalize_file(autoencoder, vae, normal, scenes))
    workers = max(1, changes.get("workers", 1))
    _draw(output / "storybook", SCENES * length, workers)
    _draw(output / "storybook_things", MORE_SCENES * length, workers, close_ups="only")
    _draw(output / "storybook_mixed", MORE_SCENES * length, workers, close_ups="too")
    uncontrolled = {**changes, "model": str(_with_vae(output, normal))}
    crops = train_step("tiny_base_crops", output, length, uncontrolled)
    base = train_step("tiny_base", output, length, {**uncontrolled, "base": str(crops)})
    start = output / "tiny_ini.safetensors"
    _once(start, lambda: add_control_to_file(base, start, MODELS / "cldm_tiny.yaml"))
    control = train_step("tiny_control", output, length, {**changes, "base": str(start)})
    taught = _teach_words(output / "tiny_text", control, length, changes)
    things = train_step("tiny_things", output, length, {**changes, "base": str(taught)})
    coloured = train_step("tiny_colours", output, length, {**changes, "base": str(things)})
    decoder = train_step("tiny_decoder", output, length, {**changes, "base": str(normal)})
    hinted = train_step("tiny_conditions", output, length, {**changes, "base": str(coloured)})
    written = export(coloured, models / "control_tiny_seg.safetensors", vae=decoder)
    written += export(hinted, models / "control_tiny_hints.safetensors", only="control_model.", float8=True)
    for path in written:
        logger.info("wrote %s", path)
    for name in ("tiny_detector", "tiny_second_detector"):
        _make_detector(name, output / name, detectors, length, changes)


def _draw(folder: Path, count: float, workers: int, close_ups: str = "none") -> None:
    write = partial(write_dataset, folder, max(8, round(count)), workers=workers, close_ups=close_ups)
    _once(folder / "prompt.json", write)


def _with_vae(output: Path, weights: Path) -> Path:
    """The base model's definition with the VAE that was trained here."""
    definition = OmegaConf.load(MODELS / "ldm_tiny.yaml")
    definition.model.params.first_stage_config.params.ckpt_path = str(weights)
    path = output / "ldm_tiny.yaml"
    OmegaConf.save(definition, path)
    return path


def _teach_words(folder: Path, base: Path, length: float, changes: dict[str, Any]) -> Path:
    settings = _with_changes("tiny_text", length, {**changes, "base": str(base)}, "model")
    _train_to_the_end(partial(train_text, settings, folder), folder / "last.ckpt", settings.max_steps)
    return folder / "model.safetensors"


def _make_detector(name: str, folder: Path, detectors: Path, length: float, changes: dict[str, Any]) -> None:
    settings = _with_changes(name, length, changes, "network")
    _train_to_the_end(partial(train_detector, settings, folder), folder / "last.ckpt", settings.max_steps)
    weights = folder / Path(settings.network).with_suffix(".safetensors").name
    with atomic_write(detectors / weights.name) as target:
        target.write_bytes(weights.read_bytes())
    logger.info("wrote %s", detectors / weights.name)


def _with_changes(name: str, length: float, changes: dict[str, Any], path: str) -> DictConfig:
    """The settings of a training that is not `train`, with those of the changes that it knows.

    The file that the setting ``path`` names is given by its full path, so that it is found from any folder.
    """
    settings: Any = OmegaConf.load(CONFIGS / f"{name}.yaml")
    settings = OmegaConf.merge(settings, {key: value for key, value in changes.items() if key in settings})
    steps = max(2, round(settings.max_steps * length))
    return cast(
        DictConfig, OmegaConf.merge(settings, {path: str(files.ROOT / settings[path]), "max_steps": steps})
    )


def _train_to_the_end(work: Callable[[str | None], object], checkpoint: Path, steps: int) -> None:
    """Train from the start, or continue from ``checkpoint``, or do nothing where that has all its steps.

    Raises:
        SystemExit: the training was asked to stop.
    """
    done = _steps_of(checkpoint)
    logger.info("%s: %d of %d steps are done", checkpoint, done, steps)
    if done >= steps:
        return
    work(str(checkpoint) if done else None)
    if _steps_of(checkpoint) < steps:
        raise SystemExit("Stopped. The same command continues from here.")


def _steps_of(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]


def _once(result: Path, work: Callable[[], object]) -> None:
    """Do ``work`` unless the file that it writes is there."""
    if not result.exists():
        work()
        logger.info("wrote %s", result)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.make_tiny``."""
    parser = argparse.ArgumentParser(
        prog="python -m controlnet.storybook.make_tiny", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder of all steps (default outputs)"
    )
    parser.add_argument("--length", type=float, default=1.0, help="factor of every step's length (default 1)")
    parser.add_argument("--precision", help="such as 32-true, for a CPU without bf16")
    parser.add_argument("--workers", type=int, help="processes that draw scenes")
    parser.add_argument("--batch-size", type=int, help="of every step; by default each has its own")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    changes = {name: getattr(options, name) for name in ("precision", "workers", "batch_size")}
    given = {name: value for name, value in changes.items() if value is not None}
    make_tiny(options.output, length=options.length, **given)


if __name__ == "__main__":
    main()
