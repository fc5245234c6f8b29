"""Depth and surface normals: a picture in, two maps out (the original's ``annotator/midas``)."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from annotator.midas.maps import depth_picture, normal_picture
from annotator.midas.network import DepthNetwork
from annotator.network import NetworkDetector, check_picture
from ldm.command import command_name

__all__ = ["MidasDetector", "apply_midas", "depth_picture", "normal_picture"]

logger = logging.getLogger(__name__)


class MidasDetector(NetworkDetector):
    """MiDaS' DPT hybrid, or a narrow network of the same kind: its file tells the widths.

    ``model`` takes RGB ``[B, 3, H, W]`` in [-1, 1] and gives relative inverse depth ``[B, H, W]``. Arguments
    as in ``NetworkDetector``.
    """

    checkpoint_names = ("dpt_hybrid-midas-501f0c75.pt", "depth_tiny.safetensors")
    half_is_safe = False  # normals are made of small differences of the depth: in float16 one of five changes

    def __call__(
        self, picture: np.ndarray, a: float = np.pi * 2.0, bg_th: float = 0.1
    ) -> tuple[np.ndarray, np.ndarray]:
        """A picture -> the maps of its depth and of its normals.

        Args:
            picture: uint8 RGB ``[H, W, 3]``; the network was trained for a short side of 384 pixels.
            a, bg_th: as in ``normal_picture``.

        Returns:
            ``depth_picture``, uint8 ``[H, W]``, and ``normal_picture``, uint8 ``[H, W, 3]``.

        Raises:
            ValueError: another dtype or shape, or an ``a`` that is not above 0; on the first call, whatever
                ``model`` raises.
        """
        depth = self.depth(picture)
        return depth_picture(depth), normal_picture(depth, a, bg_th)

    @torch.inference_mode()
    def depth(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> relative inverse depth, float32 ``[H, W]``: large is near, 0 far away.

        Raises as ``__call__`` does.
        """
        check_picture(picture)
        x = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device).permute(2, 0, 1)[None]
        x = x.float() / 127.5 - 1
        return self.model(x.to(self.dtype))[0].float().cpu().numpy()

    def build(self, checkpoint: Path) -> nn.Module:
        released, small = self.checkpoint_names
        if checkpoint.name == small:
            logger.warning(
                "Depth is seen by a small network, %s, which knows drawn scenes alone. For photographs: %s "
                "weights fetch %s",
                small,
                command_name(),
                Path(released).stem,
            )
        return DepthNetwork.from_file(checkpoint).for_inference()


_detector = cache(MidasDetector)


def apply_midas(
    input_image: np.ndarray, a: float = np.pi * 2.0, bg_th: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """`MidasDetector` with its defaults, as a function: the name in the original's first version."""
    return _detector()(input_image, a, bg_th)
