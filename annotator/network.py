"""What all detectors with a network share: one file of weights, read with the first picture, once."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ldm.command import command_name
from ldm.files import find_file
from ldm.packing import pack_weights
from ldm.weights import WeightsError


class NetworkDetector(ABC):
    """A detector whose network is loaded when it is first needed; one may serve several threads.

    Args:
        checkpoint: the network's weights; by default the first of ``checkpoint_names`` that lies in
            ``annotator/ckpts``.
        device: where the network runs, by default CUDA if there is one.
        dtype: the type of weights and activations; by default float16 on CUDA where ``half_is_safe``, else
            float32.
    """

    checkpoint_names: ClassVar[tuple[str, ...]] = ()
    """File names in ``annotator/ckpts``: the released weights first, then what ships with the project, if
    anything.
    """

    half_is_safe: ClassVar[bool] = False
    """Whether float16 gives nearly the same maps."""

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = self.half_is_safe and self.device.type == "cuda"
        self.dtype = dtype or (torch.float16 if half else torch.float32)
        self._model: nn.Module | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def build(self, checkpoint: Path) -> nn.Module:
        """The network with the weights of a file, checked to fit it; on the CPU, in float32.

        Raises:
            WeightsError: the file is missing, damaged, or holds other weights.
        """

    @property
    def model(self) -> nn.Module:
        """The network on its device, in its dtype and in eval mode; read from disk the first time it is asked
        for.

        Raises:
            WeightsError: no file (the text says where it belongs and how to fetch it), or one that does not
                fit.
        """
        with self._lock:
            if self._model is None:
                model = self.build(self.checkpoint or self.default_checkpoint())
                model.to(self.device, self.dtype, memory_format=torch.channels_last).eval().requires_grad_(
                    False
                )
                pack_weights(model)  # on a CPU; elsewhere there is nothing to pack
                self._model = model
            return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = model

    def load(self) -> None:
        """Load the network now rather than with the first picture. Raises as ``model`` does."""
        _ = self.model

    @classmethod
    def default_checkpoint(cls) -> Path:
        """The first of ``checkpoint_names`` that is there.

        Raises:
            WeightsError: none is; the text names the file, its place and the command that fetches it.
        """
        names = [f"annotator/ckpts/{name}" for name in cls.checkpoint_names]
        path = find_file(*names)
        if path.is_file():
            return path
        best = find_file(names[0])
        raise WeightsError(
            f"{best}: the detector's weights are missing. Fetch them with: "
            f"{command_name()} weights fetch {best.stem}"
        )


def check_picture(picture: np.ndarray) -> None:
    """Raise a ValueError for anything but uint8 ``[H, W, 3]`` with at least one pixel."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"A picture must be uint8 RGB [H, W, 3], got {picture.dtype} {list(picture.shape)}.")
