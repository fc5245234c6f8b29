"""Trains the embedded detector on storybook scenes, through Lightning.

``python -m controlnet.storybook.train_detector --config configs/train/tiny_detector.yaml --output
runs/tiny_detector``

Generated pictures are a little soft, noisy or off in colour. A detector that has only seen clean drawings
would blame the generator for that, so half of the scenes are degraded in those ways. A part becomes plain
colours, and others are drawings of a few shapes, like what people paint themselves. The loss looks at some
pixels of every picture only: most of them anywhere, some of them as many for each class, so that the sky
does not drown a person.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from annotator.uniformer.segmentor import build_segmentor
from controlnet.evaluate.scores import MeanIoU
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.drawings import draw
from controlnet.storybook.lesson import fit, rising_and_falling, run_training
from controlnet.storybook.scene_items import Scenes, channels_first, degrade, flatten
from controlnet.training.data.dataset import Draw
from controlnet.training.data.loader import make_loader
from ldm.weights import load_file_into, save_state_dict

logger = logging.getLogger(__name__)


def choose_points(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Flat positions of ``count`` pixels of a map ``[H, W]``: most anywhere, an eighth evenly among its
    classes.

    More for small things would make the network draw them too large.
    """
    flat = labels.ravel()
    even = count // 8
    anywhere = rng.integers(0, flat.size, count - even)
    pixels_of_class = np.bincount(flat, minlength=256)
    reach = np.cumsum(1.0 / pixels_of_class[flat])
    evenly = np.searchsorted(reach, rng.random(even) * reach[-1], side="right")
    return np.minimum(np.concatenate([anywhere, evenly]), flat.size - 1)


class DetectorScenes(Scenes):
    """Scenes for the detector; see :func:`degrade` and :func:`choose_points`.

    Args:
        first_seed: seed of item 0.
        count: number of items.
        size: side of the pictures in pixels.
        points: pixels that the loss looks at; None for validation: clean pictures and whole maps.
        seed: of degrading and choosing.
        flat: share of scenes for training that become plain colours, see :func:`flatten`.
        drawings: share of pictures for training that are no scenes but drawings, see
            :mod:`controlnet.storybook.drawings`.

    Raises:
        ValueError: a share beyond [0, 1].
    """

    def __init__(
        self,
        first_seed: int,
        count: int,
        size: int,
        points: int | None,
        seed: int = 0,
        flat: float = 0.0,
        drawings: float = 0.0,
    ) -> None:
        super().__init__(first_seed, count, seed)
        for name, share in (("flat", flat), ("drawings", drawings)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; a share between 0 and 1 is wanted.")
        self.size, self.points, self.flat, self.drawings = size, points, flat, drawings

    def __getitem__(self, key: int | Draw) -> dict[str, Any]:
        """``picture`` uint8 RGB ``[3, H, W]``; for training ``points`` int64 ``[P]`` and their ``classes``
        int64 ``[P]``, for validation ``labels`` uint8 ``[H, W]``."""
        index, _, rng = self.place(key)
        if self.points is None:
            scene = draw_scene(self.first_seed + index, self.size)
            return {"picture": channels_first(scene.picture), "labels": scene.labels}
        picture, labels = self._picture_and_map(index, rng)
        picture = degrade(picture, rng)
        if rng.random() < 0.5:
            picture, labels = picture[:, ::-1], labels[:, ::-1]
        points = choose_points(labels, self.points, rng)
        classes = labels.ravel()[points].astype(np.int64)
        return {"picture": channels_first(picture), "points": points, "classes": classes, "index": index}

    def _picture_and_map(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.drawings and rng.random() < self.drawings:
            return draw(rng, self.size)
        scene = draw_scene(self.first_seed + index, self.size)
        if self.flat and rng.random() < self.flat:
            return flatten(scene.picture, scene.labels, rng)
        return scene.picture, scene.labels


class DetectorTraining(pl.LightningModule):
    """Cross entropy of an mmseg network at chosen pixels, AdamW with warm-up and cosine decay.

    Args:
        network: path of an mmseg config.
        learning_rate, weight_decay: of AdamW.
        max_steps: when the learning rate reaches 0.
    """

    def __init__(self, network: str, learning_rate: float, weight_decay: float, max_steps: int) -> None:
        super().__init__()
        segmentor: Any = build_segmentor  # a Module with more methods than its stubs know
        self.segmentor = segmentor(network).to(memory_format=torch.channels_last)
        self.learning_rate, self.weight_decay, self.max_steps = learning_rate, weight_decay, max_steps
        self.mean_iou = MeanIoU()

    def forward(self, picture: Tensor) -> Tensor:
        """uint8 RGB ``[B, 3, H, W]`` -> logits ``[B, classes, H/4, W/4]``."""
        prepare = self.segmentor.data_preprocessor
        x = ((picture.float() - prepare.mean) / prepare.std).contiguous(memory_format=torch.channels_last)
        return self.segmentor.decode_head(self.segmentor.extract_feat(x))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["picture"])
        height, width = batch["picture"].shape[2:]
        x = (batch["points"] % width + 0.5) * (2 / width) - 1
        y = (batch["points"] // width + 0.5) * (2 / height) - 1
        grid = torch.stack([x, y], -1)[:, :, None].to(logits)
        at_points = F.grid_sample(logits, grid, padding_mode="border", align_corners=False)[..., 0]
        loss = F.cross_entropy(at_points, batch["classes"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["picture"])
        logits = F.interpolate(logits, batch["labels"].shape[1:], mode="bilinear", align_corners=False)
        self.mean_iou.update(logits.argmax(1), batch["labels"])

    def on_validation_epoch_end(self) -> None:
        self.log("detector_miou", self.mean_iou.compute(), prog_bar=True)
        self.mean_iou.reset()

    def configure_optimizers(self) -> Any:
        # Not fused: Lightning clips no gradients of such an optimizer in mixed precision.
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        return rising_and_falling(optimizer, self.max_steps)


def train_detector(settings: DictConfig, output: Path, resume: str | Path | None = None) -> Path:
    """Train, and write the network's weights as float16.

    Args:
        settings: the keys of ``configs/train/tiny_detector.yaml``.
        output: folder for ``last.ckpt``, ``metrics.csv`` and the weights.
        resume: a ``last.ckpt`` to continue from.

    Returns:
        the path of the weights.
    """
    pl.seed_everything(settings.seed, verbose=False)
    module = DetectorTraining(
        settings.network, settings.learning_rate, settings.weight_decay, settings.max_steps
    )
    if settings.base is not None:
        load_file_into(module.segmentor, settings.base)
        module.segmentor.to(memory_format=torch.channels_last)
    scenes = DetectorScenes(
        settings.first_seed,
        settings.scenes,
        settings.size,
        settings.points,
        settings.seed,
        settings.get("flat", 0.0),
        settings.get("drawings", 0.0),
    )
    held_out = DetectorScenes(settings.validation_seed, settings.validation_scenes, settings.size, None)
    loader = make_loader(
        scenes, settings.batch_size, seed=settings.seed, shuffle=False, workers=settings.workers
    )
    fit(module, loader, settings, output, resume, DataLoader(held_out, batch_size=4))
    weights = output / Path(settings.network).with_suffix(".safetensors").name
    state = module.segmentor.state_dict()
    save_state_dict({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, weights)
    logger.info("The detector's weights: %s", weights)
    return weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m controlnet.storybook.train_detector``."""
    run_training(train_detector, "train_detector", "tiny_detector", "Train a small detector.", arguments)


if __name__ == "__main__":
    main()
