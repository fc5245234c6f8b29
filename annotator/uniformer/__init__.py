"""The segmentation detector: a picture in, an ADE20K colour map out (the original's
``annotator/uniformer``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotator import ade20k
from ldm.command import command_name
from ldm.files import ROOT, find_file

if TYPE_CHECKING:
    from torch import nn

DEFAULT_CONFIG = ROOT / "configs" / "annotator" / "upernet_global_small.py"


class SegmentationDetector:
    """Segments pictures with any mmseg network; by default UPerNet on UniFormer-S, as the original does.

    Nothing is read before the first picture (or ``load``). One detector may serve several threads.

    Args:
        checkpoint: weights that belong to the config; by default the file in ``annotator/ckpts`` that the
            config names.
        config: an mmseg config file, by default the original's network. The file is executed: never take its
            path from a stranger.
        device: where the network runs, by default CUDA if there is one.
        dtype: the type of the network's weights and activations, by default float16 on CUDA and float32
            elsewhere.

    Attributes:
        classes: the names of the classes; known once loaded.
        palette: uint8 ``[N, 3]`` RGB, the colours of the classes, ADE20K's for any network with 150 classes;
            known once loaded.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        config: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.config = DEFAULT_CONFIG if config is None else Path(config)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self.classes: tuple[str, ...] = ()
        self.palette = ade20k.PALETTE
        self.model: nn.Module | None = None
        self._pipeline: Sequence[Any] = ()
        self._feed_rgb_as_bgr = False
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> the colour map, uint8 RGB ``[H, W, 3]``. Errors as in ``labels_of``."""
        labels = self.labels(picture)
        return ade20k.colorize(labels, self.palette)

    def labels(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> class indices, uint8 ``[H, W]``. Errors as in ``labels_of``."""
        return self.labels_of([picture])[0]

    def labels_of(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Classify the pixels of several pictures in one batch.

        Args:
            pictures: uint8 RGB ``[H, W, 3]`` each, in [0, 255], all of one size.

        Returns:
            One uint8 ``[H, W]`` of class indices per picture.

        Raises:
            ValueError: pictures of another dtype or shape; on the first call, whatever ``load`` raises.
        """
        if not pictures:
            return []
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                raise ValueError(
                    f"A picture must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}."
                )
        shapes = {picture.shape for picture in pictures}
        if len(shapes) > 1:
            raise ValueError(f"The pictures of a batch must have one size, got {sorted(shapes)}.")
        self.load()
        from annotator.uniformer.segmentor import predict_labels

        if not self._feed_rgb_as_bgr:
            pictures = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
        return predict_labels(self.model, self._pipeline, pictures)

    def load(self) -> None:
        """Load the network now rather than with the first picture; a second call does nothing.

        Raises:
            ValueError: no config, or one that mmseg cannot build.
            ldm.weights.WeightsError: no checkpoint (the text says where it belongs and how to fetch it), or
            one that is
                damaged or does not belong to the config.
        """
        with self._lock:
            if self.model is not None:
                return
            from annotator.uniformer import segmentor

            config = segmentor.read_config(self.config)
            checkpoint = self.checkpoint or _default_checkpoint(config, self.config)
            pipeline = segmentor.build_pipeline(config)
            model = segmentor.load_segmentor(config, checkpoint, self.device, self.dtype)
            self.classes, self.palette = segmentor.classes_and_palette(config, model.num_classes)
            self._pipeline = pipeline
            self._feed_rgb_as_bgr = bool(config.get("feed_rgb_as_bgr", False))
            self.model = model


class UniformerDetector(SegmentationDetector):
    """The original's name for the detector, which its users' scripts import."""


_detector = cache(UniformerDetector)


def apply_uniformer(img: np.ndarray) -> np.ndarray:
    """`UniformerDetector` with its defaults, as a function: the name in the original's first version."""
    return _detector()(img)


def _default_checkpoint(config: Any, config_path: Path) -> Path:
    """The checkpoint that one of our own configs names; a clear error where there is none."""
    from ldm.weights import WeightsError

    name = config.get("checkpoint")
    if name is None:
        raise WeightsError(
            f"{config_path}: this config names no checkpoint; give the one that belongs to it."
        )
    path = find_file(f"annotator/ckpts/{name}")
    if not path.is_file():
        fetch = config.get("fetch")
        how = f" Fetch them with: {command_name()} weights fetch {fetch}" if fetch else ""
        raise WeightsError(f"{path}: the detector's weights are missing.{how}")
    return path
