"""Straight lines in a picture, as M-LSD finds them (the original's ``annotator/mlsd``)."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import torch

from annotator.mlsd.inference import simplify
from annotator.mlsd.lines import decode_lines, draw_lines
from annotator.mlsd.network import STRIDE, MobileV2_MLSD_Large
from annotator.network import NetworkDetector, check_picture
from ldm.packing import pack_weights
from ldm.weights import load_file_into

__all__ = ["MLSDdetector", "MobileV2_MLSD_Large"]

logger = logging.getLogger(__name__)


class MLSDdetector(NetworkDetector):
    """Finds straight line segments with M-LSD's large network; arguments as in ``NetworkDetector``.

    The network works at the picture's size (best near 512 pixels), at the nearest multiples of 16.
    """

    checkpoint_names = ("mlsd_large_512_fp32.pth", "mlsd_large.safetensors")

    # On ten photographs float16 moves one line in twenty by more than a pixel, and bfloat16 every second one.
    half_is_safe = False

    def __call__(self, picture: np.ndarray, thr_v: float = 0.1, thr_d: float = 0.1) -> np.ndarray:
        """Draw the lines that are found, white and one pixel wide on black; black alone if there are none.

        Args:
            picture: uint8 RGB ``[H, W, 3]``, in [0, 255].
            thr_v: least score of a line, in [0, 1]; more of it gives fewer lines.
            thr_d: least length of a line, in pixels of the maps, which have half the picture's size.

        Returns:
            uint8 ``[H, W]``, 0 or 255.

        Raises:
            ValueError: another dtype or shape, or a network that gives NaN; on the first call, what ``load``
                raises.
        """
        lines = self.lines(picture, thr_v, thr_d)
        return draw_lines(lines, *picture.shape[:2])

    def lines(self, picture: np.ndarray, thr_v: float = 0.1, thr_d: float = 0.1) -> np.ndarray:
        """The line segments of a picture; arguments and errors as above.

        Returns:
            float64 ``[N, 4]``: x and y of the start, x and y of the end, in pixels; at most 200, the best
            score first. Ends may lie outside the picture.
        """
        check_picture(picture)
        height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in picture.shape[:2])
        model = self.model
        with torch.inference_mode():
            maps = model(self._network_input(picture, height, width))
            lines = decode_lines(maps, thr_v, thr_d)
        if not len(lines):
            logger.info("No line has a score above %g and a length above %g.", thr_v, thr_d)
        scale_y, scale_x = picture.shape[0] / height, picture.shape[1] / width
        return 2 * lines * [scale_x, scale_y, scale_x, scale_y]  # the maps have half the size

    def build(self, checkpoint: Path) -> MobileV2_MLSD_Large:
        with torch.device("meta"):
            model = MobileV2_MLSD_Large()
        load_file_into(model, checkpoint, hint="M-LSD's released file is mlsd_large_512_fp32.pth.")
        simplify(model.eval())
        model.to(self.dtype, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            pack_weights(model)
        return model

    def _network_input(self, picture: np.ndarray, height: int, width: int) -> torch.Tensor:
        """RGB and a channel of ones, / 127.5 - 1: ``[1, 4, height, width]``."""
        if picture.shape[:2] != (height, width):
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        x = torch.ones(1, height, width, 4, device=self.device)
        x[..., :3] = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device)
        return x.div_(127.5).sub_(1).to(self.dtype).permute(0, 3, 1, 2)
