"""Pictures of how training goes, as files and in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torchvision.utils import make_grid


class ImageLogger(pl.Callback):
    """Writes the pictures of the model's ``log_images``, every ``batch_frequency`` steps.

    Files are ``<save_dir>/image_log/<split>/<name>_gs-<step>_e-<epoch>_b-<batch>.png``, where ``save_dir`` is
    the trainer's logger's folder, or the trainer's root. Making the pictures takes nothing from the random
    numbers that training draws, and always starts from the same seed, so that pictures of different steps can
    be compared.

    The arguments are the original's (cldm/logger.py), which ignored ``increase_log_steps``,
    ``log_on_batch_idx`` and ``log_first_step``: it wrote at batch 0 and then every ``batch_frequency``
    batches. So do the defaults here, but for counting optimizer steps of the run: the original counted the
    batches of an epoch, as ``log_on_batch_idx=True`` does.

    Args:
        batch_frequency: steps from one writing to the next.
        max_images: the greatest number of items to show.
        clamp: cut values off at [-1, 1].
        increase_log_steps: write also at the steps 1, 2, 4, 8 … below ``batch_frequency``.
        rescale: the pictures are in [-1, 1]; False takes them as being in [0, 1].
        disabled: write nothing.
        log_on_batch_idx: count batches of the epoch instead of optimizer steps.
        log_first_step: write also at step 0, before anything was learnt.
        log_images_kwargs: arguments for the model's ``log_images``.
        seed: of the sampling.
    """

    def __init__(
        self,
        batch_frequency: int = 2000,
        max_images: int = 4,
        clamp: bool = True,
        increase_log_steps: bool = False,
        rescale: bool = True,
        disabled: bool = False,
        log_on_batch_idx: bool = False,
        log_first_step: bool = True,
        log_images_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if batch_frequency < 1:
            raise ValueError(
                f"batch_frequency must be at least 1, got {batch_frequency}; disabled=True switches off."
            )
        self.batch_freq = batch_frequency
        self.max_images = max_images
        self.clamp = clamp
        self.rescale = rescale
        self.disabled = disabled
        self.log_on_batch_idx = log_on_batch_idx
        self.log_first_step = log_first_step
        self.log_images_kwargs = dict(log_images_kwargs or {})
        self.seed = seed
        self.log_steps = (
            [2**n for n in range(int(math.log2(batch_frequency)) + 1)] if increase_log_steps else []
        )
        self._last_logged: tuple[str, int | None, int] | None = None

    def check_frequency(self, check_idx: int) -> bool:
        """Whether pictures are due at this step."""
        if check_idx == 0:
            return self.log_first_step
        return check_idx % self.batch_freq == 0 or check_idx in self.log_steps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before the step: at step N the weights are those after N updates.
        if not self.disabled:
            self.log_img(pl_module, batch, batch_idx)

    @rank_zero_only
    def log_img(
        self, pl_module: pl.LightningModule, batch: Any, batch_idx: int, split: str = "train"
    ) -> None:
        """Make and write the pictures for a batch, where they are due and not yet there."""
        epoch, step = pl_module.current_epoch, pl_module.global_step
        check_idx = batch_idx if self.log_on_batch_idx else step
        place = (split, epoch if self.log_on_batch_idx else None, check_idx)  # accumulation repeats a step
        if place == self._last_logged or not self.check_frequency(check_idx):
            return
        if self.max_images < 1 or not callable(getattr(pl_module, "log_images", None)):
            return
        self._last_logged = place
        images = self.make_images(pl_module, batch)
        self.log_local(self.save_dir(pl_module.trainer), split, images, step, epoch, batch_idx)
        for logger in pl_module.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, grid in self.grids(images).items():
                    logger.experiment.add_image(f"{split}/{name}", grid, step)

    def make_images(self, pl_module: pl.LightningModule, batch: Any) -> dict[str, torch.Tensor]:
        """Float pictures ``[N, 3, H, W]`` on the CPU by name, in [-1, 1] if ``clamp`` is set, N ≤
        ``max_images``.
        """
        trained = [module for module in pl_module.modules() if module.training]
        accelerators = [pl_module.device.index or 0] if pl_module.device.type == "cuda" else []
        log_images: Any = pl_module.log_images
        pl_module.eval()
        try:
            with torch.random.fork_rng(devices=accelerators), torch.no_grad():
                torch.manual_seed(self.seed)
                images = log_images(batch, **{"N": self.max_images, **self.log_images_kwargs})
        finally:
            for module in trained:  # not pl_module.train(): some parts may be in eval mode for good
                module.training = True
        images = {
            name: image[: self.max_images].detach().float().cpu()
            for name, image in images.items()
            if isinstance(image, torch.Tensor)
        }
        return {name: image.clamp(-1.0, 1.0) for name, image in images.items()} if self.clamp else images

    def grids(self, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One picture ``[3, H, W]`` in [0, 1] by name: the pictures of a name side by side, four in a row."""
        grids = {name: make_grid(image, nrow=4) for name, image in images.items()}
        if self.rescale:
            grids = {name: (grid + 1.0) / 2.0 for name, grid in grids.items()}
        return {name: grid.clamp(0.0, 1.0) for name, grid in grids.items()}

    def log_local(
        self,
        save_dir: str | Path,
        split: str,
        images: dict[str, torch.Tensor],
        global_step: int,
        current_epoch: int,
        batch_idx: int,
    ) -> None:
        """Write the pictures as PNG files."""
        root = Path(save_dir) / "image_log" / split
        root.mkdir(parents=True, exist_ok=True)
        for name, grid in self.grids(images).items():
            array = (grid.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()  # [H, W, 3]
            Image.fromarray(array).save(
                root / f"{name}_gs-{global_step:06}_e-{current_epoch:06}_b-{batch_idx:06}.png"
            )

    @staticmethod
    def save_dir(trainer: pl.Trainer) -> Path:
        return Path((trainer.logger.save_dir if trainer.logger else None) or trainer.default_root_dir)
