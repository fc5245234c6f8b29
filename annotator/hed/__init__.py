"""Soft edges, as holistically-nested edge detection finds them (the original's ``annotator/hed``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from annotator.hed.inference import side_maps
from annotator.hed.network import WIDTHS, ControlNetHED_Apache2
from annotator.network import NetworkDetector, check_picture
from annotator.util import nms
from ldm.weights import load_file_into, map_state_dict
from ldm.winograd import use_winograd

__all__ = ["ControlNetHED_Apache2", "HEDdetector", "apply_hed", "nms"]

_LEAST_SIDE = 16  # the network halves a picture four times


class HEDdetector(NetworkDetector):
    """Finds edges with a network of any widths; arguments and errors as in ``NetworkDetector``."""

    checkpoint_names = ("ControlNetHED.pth", "hed_tiny.safetensors")
    half_is_safe = False  # of the values up to 2 % would be off by one in float16, and up to 18 % in bfloat16

    def __call__(self, input_image: np.ndarray) -> np.ndarray:
        """How likely each pixel is part of an edge.

        The logits of the five blocks are brought to the picture's size, bilinear, and averaged.

        Args:
            input_image: uint8 RGB ``[H, W, 3]``, in [0, 255], each side 16 or more.

        Returns:
            uint8 ``[H, W]``: 255 times the probability, rounded down.

        Raises:
            ValueError: another dtype or shape, or a network that gives NaN (in float16 it may); on the first
                call, what ``load`` raises.
        """
        check_picture(input_image)
        height, width = input_image.shape[:2]
        if min(height, width) < _LEAST_SIDE:
            raise ValueError(
                f"A picture of {width}x{height} pixels is too narrow: HED needs {_LEAST_SIDE} on each side."
            )
        picture = torch.tensor(np.ascontiguousarray(input_image), device=self.device)
        with torch.inference_mode():
            maps = side_maps(self.model, picture.permute(2, 0, 1)[None].to(self.dtype))
            sized = [F.interpolate(logits.float(), (height, width), mode="bilinear") for logits in maps]
            edges = (sum(sized) / len(sized))[0, 0].double().sigmoid()
            if edges.isnan().any():
                raise ValueError(f"HED gave NaN in {self.dtype}: use float32, or check the weights.")
            return (255 * edges).to(torch.uint8).cpu().numpy()

    def build(self, checkpoint: Path) -> ControlNetHED_Apache2:
        widths = _widths_of(checkpoint)
        with torch.device("meta"):
            model = ControlNetHED_Apache2(widths)
        load_file_into(model, checkpoint, hint="HED's released file is ControlNetHED.pth.")
        if self.device.type == "cpu" and self.dtype == torch.float32:
            use_winograd(model)
        return model


def _widths_of(checkpoint: Path) -> list[int]:
    """The channels of the blocks of a network in a file; the released one's where it has no such block."""
    state = map_state_dict(checkpoint)
    found = [state.get(f"block{number}.projection.weight") for number in range(1, len(WIDTHS) + 1)]
    return [
        width if weight is None or weight.ndim != 4 else weight.shape[1]
        for width, weight in zip(WIDTHS, found, strict=True)
    ]


_detector = cache(HEDdetector)


def apply_hed(input_image: np.ndarray) -> np.ndarray:
    """`HEDdetector` with its defaults, as a function: the name in the original's first version."""
    return _detector()(input_image)
