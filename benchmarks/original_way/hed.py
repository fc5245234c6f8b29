"""HED: the plain network, eager, in the default memory format, with NumPy and OpenCV around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from annotator.hed import ControlNetHED_Apache2, HEDdetector
from benchmarks.original_way import Pair, equal_values, random_weights
from ldm.weights import save_state_dict


def hed(folder: Path, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    network = random_weights(ControlNetHED_Apache2()).to(device)
    network.norm.data.fill_(120)
    for block in network.blocks:
        block.projection.weight.data *= 0.01  # all levels of grey
    save_state_dict(network.state_dict(), folder / "hed.safetensors")
    detector = HEDdetector(folder / "hed.safetensors", device, dtype)
    noise = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    yield Pair("hed", lambda: detector(picture), lambda: as_the_original(network, picture), equal_values)


@torch.no_grad()
def as_the_original(network: ControlNetHED_Apache2, picture: np.ndarray) -> np.ndarray:
    """The peer of ``HEDdetector``: uint8 RGB ``[H, W, 3]`` -> uint8 ``[H, W]``."""
    height, width = picture.shape[:2]
    x = torch.from_numpy(picture).float().to(network.norm.device).permute(2, 0, 1)[None].contiguous()
    maps = [logits.cpu().numpy()[0, 0] for logits in network(x)]
    maps = [cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) for logits in maps]
    edges = 1 / (1 + np.exp(-np.mean(np.stack(maps, axis=2), axis=2).astype(np.float64)))
    return (edges * 255.0).clip(0, 255).astype(np.uint8)
