"""Trains the embedded depth network on the depth of storybook scenes, which is exact, through Lightning.

``python -m controlnet.storybook.train_depth --output outputs/tiny_depth``

The loss is MiDaS': blind to scale and shift of the depth, with a term for its edges (Ranftl et al., Towards
Robust Monocular Depth Estimation, section 5, https://arxiv.org/abs/1907.01341). It does without trimming the
largest errors, which is for labels that may be wrong. A little of the plain error fixes scale and shift all
the same, so that normals, which are made of the raw depth, have one steepness.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from annotator.midas.config import dpt_config
from annotator.midas.network import DepthNetwork
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.hints import DEPTH_RANGE
from controlnet.storybook.lesson import fit, rising_and_falling, run_training
from controlnet.storybook.scene_items import Scenes, channels_first, degrade
from controlnet.training.data.dataset import Draw
from controlnet.training.data.loader import make_loader
from controlnet.training.muon import Muon
from ldm.weights import load_file_into, save_state_dict

logger = logging.getLogger(__name__)


def picture_and_depth(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene: uint8 RGB ``[size, size, 3]`` and inverse depth in [0, 1], float32 ``[size, size]``."""
    scene = draw_scene(seed, size)
    return scene.picture, scene.depth


class DepthScenes(Scenes):
    """Scenes with their depth; half of those for training are degraded, and half are mirrored.

    Args:
        first_seed: seed of item 0.
        count: number of items.
        sizes: sides of the pictures in pixels, one batch after the other.
        batch_size: items of a batch; 0 for validation: clean pictures of the first size.
        seed: of degrading and mirroring.
    """

    def __init__(self, first_seed: int, count: int, sizes: Sequence[int], batch_size: int = 0, seed: int = 0):
        super().__init__(first_seed, count, seed)
        self.sizes, self.batch_size = sizes, batch_size

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        """``picture`` uint8 RGB ``[3, H, W]`` and ``depth`` float32 ``[H, W]``."""
        index, position, rng = self.place(key)
        batch = position // self.batch_size if self.batch_size else 0
        picture, depth = picture_and_depth(self.first_seed + index, self.sizes[batch % len(self.sizes)])
        if self.batch_size and rng.random() < 0.5:
            picture = degrade(picture, rng)
        if self.batch_size and rng.random() < 0.5:
            picture, depth = picture[:, ::-1], depth[:, ::-1]
        return {"picture": channels_first(picture), "depth": np.ascontiguousarray(depth), "index": index}


def depth_loss(predicted: Tensor, depth: Tensor) -> Tensor:
    """MiDaS' loss of inverse depths ``[B, H, W]`` in any unit, and a tenth of the mean absolute error."""
    error = _without_scale_and_shift(predicted) - _without_scale_and_shift(depth)
    loss = error.abs().mean()
    for step in (1, 2, 4, 8):
        coarse = error[:, ::step, ::step]
        loss = loss + 0.5 * (coarse.diff(dim=1).abs().mean() + coarse.diff(dim=2).abs().mean())
    return loss + 0.1 * (predicted - depth).abs().mean()


def _without_scale_and_shift(depth: Tensor) -> Tensor:
    shifted = depth - depth.flatten(1).median(dim=1).values[:, None, None]
    return shifted / shifted.abs().mean(dim=(1, 2), keepdim=True).clamp_min(1e-3)


def aligned_error(predicted: Tensor, depth: Tensor) -> Tensor:
    """Mean absolute error ``[B]`` of depths ``[B, H, W]`` after each prediction's best scale and shift."""
    ours, target = (d.flatten(1) - d.flatten(1).mean(1, keepdim=True) for d in (predicted, depth))
    scale = (ours * target).sum(1, keepdim=True) / ours.square().sum(1, keepdim=True).clamp_min(1e-12)
    return (scale * ours - target).abs().mean(1)


def new_network(**widths: Any) -> DepthNetwork:
    """A network to train, from ``dpt_config``'s arguments."""
    network = DepthNetwork(dpt_config(**widths))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # transformers' own start is too faint for narrow layers
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.normal_(network.network.dpt.embeddings.position_embeddings, std=0.02)
    depth: Any = network.network.head.head[4]
    nn.init.constant_(depth.bias, 0.5)  # above 0, where its ReLU can learn
    return network


class DepthTraining(pl.LightningModule):
    """``depth_loss``, Muon with warm-up and cosine decay.

    Args:
        network: to train.
        learning_rate, weight_decay: of Muon.
        max_steps: when the learning rate reaches 0.
    """

    def __init__(self, network: DepthNetwork, learning_rate: float, weight_decay: float, max_steps: int):
        super().__init__()
        module: Any = network  # whose `to` knows one argument more than its stubs
        self.network = module.to(memory_format=torch.channels_last)
        self.learning_rate, self.weight_decay, self.max_steps = learning_rate, weight_decay, max_steps

    def forward(self, picture: Tensor) -> Tensor:
        """uint8 RGB ``[B, 3, H, W]`` -> inverse depth ``[B, H, W]``."""
        return self.network(picture.float() / 127.5 - 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = depth_loss(self(batch["picture"]), batch["depth"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        error = aligned_error(self(batch["picture"]), batch["depth"])
        self.log("depth_error", error.mean(), prog_bar=True, batch_size=len(error))

    def configure_optimizers(self) -> Any:
        optimizer = Muon(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return rising_and_falling(optimizer, self.max_steps)


def save_network(network: DepthNetwork, path: Path) -> None:
    """Save the weights as float16, with the keys of the released file, for depths from 0 to `DEPTH_RANGE`."""
    state = {key: tensor.detach().float() for key, tensor in network.state_dict().items()}
    for part in ("weight", "bias"):
        key = f"scratch.output_conv.4.{part}"
        state[key] = state[key] * DEPTH_RANGE
    save_state_dict({key: tensor.half() for key, tensor in state.items()}, path)


def load_network(network: DepthNetwork, path: str | Path) -> None:
    """Load what `save_network` wrote, for depths from 0 to 1 again."""
    load_file_into(network, path)
    depth: Any = network.network.head.head[4]
    with torch.no_grad():
        for part in (depth.weight, depth.bias):
            part.div_(DEPTH_RANGE)


def train_depth(settings: DictConfig, output: Path, resume: str | Path | None = None) -> Path:
    """Train, and write the network's weights.

    Args:
        settings: the keys of ``configs/train/tiny_depth.yaml``.
        output: folder for ``last.ckpt``, ``metrics.csv`` and the weights.
        resume: a ``last.ckpt`` to continue from.

    Returns:
        the path of the weights, ``depth_tiny.safetensors``.
    """
    pl.seed_everything(settings.seed, verbose=False)
    network = new_network(**settings.network)
    if settings.base is not None:
        load_network(network, settings.base)
    module = DepthTraining(network, settings.learning_rate, settings.weight_decay, settings.max_steps)
    sizes, batch_size = tuple(settings.sizes), settings.batch_size
    scenes = DepthScenes(settings.first_seed, settings.scenes, sizes, batch_size, settings.seed)
    held_out = DepthScenes(settings.validation_seed, settings.validation_scenes, (settings.validation_size,))
    loader = make_loader(scenes, batch_size, seed=settings.seed, shuffle=False, workers=settings.workers)
    fit(module, loader, settings, output, resume, DataLoader(held_out, batch_size=4))
    weights = output / "depth_tiny.safetensors"
    save_network(module.network, weights)
    logger.info("The depth network's weights: %s", weights)
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.train_depth``."""
    run_training(train_depth, "train_depth", "tiny_depth", "Train a small depth network.", arguments)


if __name__ == "__main__":
    main()
