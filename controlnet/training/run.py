"""A training run, put together from its settings."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import Dataset

from cldm.cldm import ControlLDM
from cldm.logger import ImageLogger
from cldm.model import create_model, load_model
from controlnet.conditions.seg.areas import AreaBalance
from controlnet.training.callbacks import (
    EndIfBroken,
    NonFiniteGuard,
    SeedEveryBatch,
    Throughput,
)
from controlnet.training.checkpointing import AtomicCheckpointIO, SaveLast, save_best
from controlnet.training.data.dataset import ControlDataset
from controlnet.training.data.loader import ResumableLoader, make_loader
from controlnet.training.ema import TrainedWeightsEMA
from controlnet.training.faults import SettingsError, faults_reported
from controlnet.training.latent_cache import CachedDataset
from controlnet.training.muon import Muon
from controlnet.training.precision import find_precision
from controlnet.training.resuming import SettingsOfNow
from controlnet.training.settings import Settings
from controlnet.training.validation import ControlGap
from controlnet.weights.choice import lora_argument
from ldm.definitions import check_sizes, one_line_errors, read_yaml
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion.ddpm import DDPM, LatentDiffusion
from ldm.models.diffusion.objective import TrainingObjective
from ldm.models.trained_module import TrainedModule
from ldm.util import instantiate_from_config

__all__ = ["TrainingData", "faults_reported", "make_model", "make_trainer", "train"]
"""What scripts import from here; copies of the tutorial have all of it from this module."""

logger = logging.getLogger(__name__)

WHAT_IS_TRAINED = ("sd_locked", "only_mid_control", "train_text", "decoder_only", "optimizer")
"""Settings that a resumed run cannot change."""


def make_model(settings: Settings) -> TrainedModule:
    """The model to train, on the CPU, with everything frozen that the settings do not train.

    Raises:
        ValueError: a setting is for another kind of model.
    """
    torch.manual_seed(settings.seed)
    model: TrainedModule
    if settings.base is not None:
        loras = [lora_argument(text) for text in settings.lora]
        model = load_model(
            settings.model, settings.base, control=settings.control, vae=settings.vae, loras=loras
        ).train()
    elif settings.control or settings.vae or settings.lora:
        raise SettingsError("control, vae and lora go beside the weights of a base; name it too.")
    else:
        model = create_model(settings.model)
    model.learning_rate = settings.learning_rate
    model.make_optimizer = Muon if settings.optimizer == "muon" else None
    if settings.warmup_steps or settings.cosine_decay:
        model.scheduler_config = learning_rate_schedule(settings)
    if isinstance(model, DDPM):
        model.objective = make_objective(settings, model)
    if isinstance(model, ControlLDM):
        model.sd_locked = settings.sd_locked
        model.only_mid_control = settings.only_mid_control
    if settings.train_text:
        if not isinstance(model, LatentDiffusion) or model.cond_stage_model is None:
            raise SettingsError(f"train_text: {settings.model} has no text encoder; leave it out.")
        model.unfreeze_text_encoder()
    if settings.decoder_only:
        if not isinstance(model, AutoencoderKL):
            raise SettingsError(f"decoder_only: {settings.model} is no autoencoder; leave it out.")
        model.freeze_encoder()
    model.freeze_untrained()
    set_checkpointing(model, settings.checkpointing)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    model.strict_loading = settings.save == "whole"
    return model


def learning_rate_schedule(settings: Settings) -> dict[str, Any]:
    """YAML node of the rise and fall that the settings ask for."""
    decay_steps = settings.max_steps if settings.cosine_decay else 0
    params = {"warmup_steps": settings.warmup_steps, "decay_steps": decay_steps}
    return {"target": "controlnet.training.schedules.WarmupSchedule", "params": params}


def make_objective(settings: Settings, model: DDPM) -> TrainingObjective:
    """The model's own objective, with what the settings ask for.

    Raises:
        ValueError: the model has no such time step.
    """
    first, steps = settings.first_time_step, model.num_timesteps
    if first >= steps:
        raise SettingsError(
            f"first_time_step is {first}, and the model has {steps} time steps; give a smaller one."
        )
    place_weights = AreaBalance(settings.area_balance) if settings.area_balance else None
    return replace(model.objective, first_time_step=first, place_weights=place_weights)


def set_checkpointing(model: nn.Module, whose: str) -> None:
    """Choose whose activations are computed again in the backward pass instead of kept.

    The frozen UNet's decoder needs its activations too, for the way back to the control copy.

    Args:
        whose: "none"; "control", the control copy, or in a model without one the whole network; "all".
    """
    trained = model.control_model if isinstance(model, ControlLDM) else model
    chosen = {"none": [], "control": list(trained.modules()), "all": list(model.modules())}[whose]
    wanted = set(map(id, chosen))
    for module in model.modules():
        for flag in ("use_checkpoint", "checkpoint"):  # of residual blocks, and of transformer blocks
            if isinstance(getattr(module, flag, None), bool):
                setattr(module, flag, id(module) in wanted)


class TrainingData(pl.LightningDataModule):
    """The data sets of a run, checked and if wanted encoded, and their loaders in each process."""

    trainer: pl.Trainer  # Lightning's, from `setup` on

    def __init__(self, settings: Settings, model: pl.LightningModule):
        super().__init__()
        self.settings = settings
        self.model = model
        self.train_set: Any = None
        self.val_set: Any = None

    def setup(self, stage: str) -> None:
        s = self.settings
        self.train_set = self._read(
            s.data, empty_prompts=s.empty_prompts, dropped_prompt=s.dropped_prompt, flip=s.flip
        )
        self.val_set = self._read(s.val) if s.val else None
        if self.val_set is not None and len(self.val_set) == 1:
            logger.warning(
                "%s holds a single picture: its loss says little, and no other hint can be compared with it.",
                s.val,
            )
        if s.cache_latents:
            self.model.to(self.trainer.strategy.root_device)
            self.train_set = self._encode(self.train_set, s.latent_crop)
            self.val_set = self._encode(self.val_set) if s.val else None
            self.trainer.strategy.barrier("latent cache")

    def _read(self, folder: str, **augmentation: Any) -> Dataset:
        s = self.settings
        if Path(folder).suffix in (
            ".yaml",
            ".yml",
        ):  # names a data set class, such as one that draws its pictures
            definition = read_yaml(folder)
            with one_line_errors(folder):
                check_sizes(definition)
                return instantiate_from_config(definition)
        return ControlDataset(
            folder,
            s.resolution,
            buckets=s.buckets,
            hint_kind=s.hint_kind,
            condition=s.condition,
            with_hints=isinstance(self.model, ControlLDM),
            check=s.check,
            seed=s.seed,
            **augmentation,
        )

    def _encode(self, dataset: Any, crop: int | None = None) -> CachedDataset:
        if not isinstance(self.model, LatentDiffusion) or not isinstance(dataset, ControlDataset):
            raise SettingsError("cache_latents is for data in a folder and models with a frozen VAE.")
        folder = Path(self.settings.cache or self.settings.folder / "cache")
        cached = CachedDataset(dataset, self.model, folder, crop)
        training = self.model.training
        self.model.eval()
        trainer = self.trainer
        made = cached.fill(
            self.model,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            progress=self.settings.progress and trainer.is_global_zero,
        )
        self.model.train(training)
        logger.info("%d entries were encoded, the others were there", made)
        return cached

    def train_dataloader(self) -> ResumableLoader:
        return self._loader(self.train_set, self.settings.batch_size, accumulate=self.settings.accumulate)

    def val_dataloader(self) -> ResumableLoader:
        # At least two, so that there is another hint to compare with.
        return self._loader(self.val_set, max(2, self.settings.batch_size), shuffle=False)

    def _loader(self, dataset: Any, batch_size: int, **options: Any) -> ResumableLoader:
        return make_loader(
            dataset,
            batch_size,
            seed=self.settings.seed,
            workers=self.settings.workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            hand_out_broken=True,
            **options,
        )


def make_trainer(settings: Settings, model: pl.LightningModule, *extra_callbacks: pl.Callback) -> pl.Trainer:
    """Lightning's trainer with our callbacks and checkpoints."""
    for by_design in (
        "Found .* in eval mode",
        "The number of training batches",
        "Checkpoint directory .* not empty",
    ):
        warnings.filterwarnings("ignore", by_design, module="pytorch_lightning")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=int(settings.devices) if settings.devices.isdigit() else settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=cast(Any, find_precision(settings.precision, settings.accelerator)),
        max_steps=settings.max_steps,
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip,
        val_check_interval=settings.val_every * settings.accumulate if settings.val else None,
        check_val_every_n_epoch=None if settings.val else 1,
        limit_val_batches=None if settings.val else 0,
        num_sanity_val_steps=0,
        callbacks=[*_callbacks(settings, model), *extra_callbacks],
        plugins=[
            AtomicCheckpointIO(
                trained if settings.save == "control-only" else None,
                choices={name: getattr(settings, name) for name in WHAT_IS_TRAINED},
                model=model,
            )
        ],
        logger=[
            TensorBoardLogger(settings.output, name="tensorboard"),
            CSVLogger(settings.output, name="metrics"),
        ],
        log_every_n_steps=settings.log_every,
        default_root_dir=settings.output,
        enable_progress_bar=settings.progress,
        enable_checkpointing=bool(settings.val and settings.save_best),
        enable_model_summary=settings.progress,
        use_distributed_sampler=False,  # our loader divides the batches itself
    )


def _callbacks(settings: Settings, model: pl.LightningModule) -> list[pl.Callback]:
    """In the order in which they must act: the average before the checkpoint that holds it."""
    callbacks: list[pl.Callback] = [
        EndIfBroken(),
        SettingsOfNow(settings),
        SeedEveryBatch(settings.seed),
        NonFiniteGuard(),
        Throughput(),
    ]
    if settings.ema:
        callbacks.append(TrainedWeightsEMA(settings.ema))
    if settings.logger_freq:
        callbacks.append(ImageLogger(settings.logger_freq))
    if settings.val and isinstance(model, ControlLDM):
        callbacks.append(ControlGap())
    callbacks.append(SaveLast(settings.last_checkpoint, settings.save_every))
    if settings.val and settings.save_best:
        callbacks.append(save_best(settings.last_checkpoint.parent, settings.save_best))
    return callbacks


def train(settings: Settings, *extra_callbacks: pl.Callback) -> pl.Trainer:
    """Run a training as `tutorial_train.py` does, from start or ``settings.resume`` to its end."""
    resume = settings.resume_path()
    model = make_model(settings)
    trainer = make_trainer(settings, model, *extra_callbacks)
    trainer.fit(model, datamodule=TrainingData(settings, model), ckpt_path=resume, weights_only=True)
    return trainer
