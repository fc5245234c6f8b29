"""Depth: transformers' own DPT hybrid, with softmax attention by hand, the backbone's weights standardised in
every pass, and the default memory format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from annotator.midas import MidasDetector, depth_picture, normal_picture
from annotator.midas.config import config_of, dpt_config
from annotator.midas.network import DepthNetwork
from annotator.midas.released import to_transformers
from benchmarks.original_way import Pair, relative_difference
from ldm.weights import read_state_dict, save_state_dict

RELEASED: dict[str, Any] = {
    "stem": 64,
    "widths": (256, 512, 1024),
    "depths": (3, 4, 9),
    "hidden_size": 768,
    "layers": 12,
    "mlp": 3072,
    "side": 24,
    "laterals": (256, 512, 768, 768),
    "fusion": 256,
}
"""The widths of the released network."""


def depth(folder: Path, size: int, device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """Both maps, of depth and of normals, on both sides; a side is a multiple of 32."""
    checkpoint = folder / "depth.safetensors"
    random_checkpoint(checkpoint)
    detector = MidasDetector(checkpoint, device, dtype)
    original = original_depth(checkpoint, size, device)
    noise = np.random.default_rng(0).integers(0, 256, (size // 32, size // 32, 3), dtype=np.uint8)
    picture = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    yield Pair(
        "depth",
        lambda: with_maps(detector.depth(picture)),
        lambda: with_maps(original(picture)),
        lambda ours, theirs: relative_difference(ours[0], theirs[0]),
    )


def with_maps(values: np.ndarray) -> tuple[np.ndarray, ...]:
    return values, depth_picture(values), normal_picture(values)


def random_checkpoint(path: Path) -> None:
    """Save a network as wide as the released one, with weights that give depth above 0."""
    torch.manual_seed(0)
    state = DepthNetwork(dpt_config(**RELEASED)).state_dict()
    state["scratch.output_conv.4.weight"] *= 100  # else rounding would hide in a depth that hardly varies
    state["scratch.output_conv.4.bias"].fill_(3)
    save_state_dict(state, path)


def original_depth(checkpoint: Path, size: int, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """The peer of ``MidasDetector.depth``, for pictures of one size."""
    from transformers import DPTForDepthEstimation

    state = read_state_dict(checkpoint)
    config = config_of(state, checkpoint)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        network = DPTForDepthEstimation(config)
    network.load_state_dict(to_transformers(state), assign=True)
    network.to(device).eval().dpt.embeddings.image_size = (size, size)

    @torch.no_grad()
    def depth_of(picture: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(picture).to(device).float() / 127.5 - 1
        return network(x.permute(2, 0, 1)[None].contiguous()).predicted_depth[0].cpu().numpy()

    return depth_of
