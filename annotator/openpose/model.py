"""The two networks of OpenPose: part affinity fields and heat maps of the body, heat maps of a hand.

After Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields" (2019), and
Simon et al., "Hand Keypoint Detection in Single Images using Multiview Bootstrapping" (2017): the first
layers of VGG-19, and six stages of which each sees the features and what the stage before it said. Modules
and their state-dict keys have the names of the original (``annotator/openpose/model.py``). The released
weights are for noncommercial use.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.weights import load_into, read_state_dict

STRIDE = 8
"""Pixels of the network's input for each cell of its maps, in both directions."""

PAF_CHANNELS = 38
"""Two for each of 19 limbs: x and y of the direction."""

BODY_CHANNELS = 19
"""Heat maps of the body: 18 joints and the background."""

HAND_CHANNELS = 22
"""Heat maps of a hand: 21 joints and the background."""

Network = TypeVar("Network", "bodypose_model", "handpose_model")

_POOL = ("pool", 0, 0, 0)
_VGG = [
    ("conv1_1", 3, 64, 3), ("conv1_2", 64, 64, 3), _POOL,
    ("conv2_1", 64, 128, 3), ("conv2_2", 128, 128, 3), _POOL,
    ("conv3_1", 128, 256, 3), *((f"conv3_{i}", 256, 256, 3) for i in (2, 3, 4)), _POOL,
    ("conv4_1", 256, 512, 3), ("conv4_2", 512, 512, 3),
]  # fmt: skip


class bodypose_model(nn.Module):
    """Where the joints of people are, and which way their limbs run."""

    def __init__(self):
        super().__init__()
        last = [("conv4_3_CPM", 512, 256, 3), ("conv4_4_CPM", 256, 128, 3)]
        self.model0 = _layers([*_VGG, *last], end_with_relu=True)
        for branch, channels in ((1, PAF_CHANNELS), (2, BODY_CHANNELS)):
            self.add_module(f"model1_{branch}", _first_stage(f"L{branch}", channels))
            for stage in range(2, 7):
                relu = (stage, branch) == (6, 2)  # the original's; released weights are used with it
                layers = _stage(f"stage{stage}_L{branch}", 128 + PAF_CHANNELS + BODY_CHANNELS, channels, relu)
                self.add_module(f"model{stage}_{branch}", layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """BGR ``[B, 3, 8h, 8w]`` in [-0.5, 0.5] -> fields ``[B, 38, h, w]``, heat maps ``[B, 19, h, w]``."""
        features = self.model0(x)
        fields, heat = self.model1_1(features), self.model1_2(features)
        for stage in range(2, 7):
            seen = torch.cat([fields, heat, features], dim=1)
            fields = self.get_submodule(f"model{stage}_1")(seen)
            heat = self.get_submodule(f"model{stage}_2")(seen)
        return fields, heat


class handpose_model(nn.Module):
    """Where the joints of one hand are."""

    def __init__(self):
        super().__init__()
        deeper = [(name, 512, 512, 3) for name in ("conv4_3", "conv4_4", "conv5_1", "conv5_2")]
        self.model1_0 = _layers([*_VGG, *deeper, ("conv5_3_CPM", 512, 128, 3)], end_with_relu=True)
        self.model1_1 = _layers([("conv6_1_CPM", 128, 512, 1), ("conv6_2_CPM", 512, HAND_CHANNELS, 1)])
        for stage in range(2, 7):
            self.add_module(f"model{stage}", _stage(f"stage{stage}", 128 + HAND_CHANNELS, HAND_CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        """BGR ``[B, 3, 8h, 8w]`` in [-0.5, 0.5] -> heat maps ``[B, 22, h, w]``."""
        features = self.model1_0(x)
        heat = self.model1_1(features)
        for stage in range(2, 7):
            heat = self.get_submodule(f"model{stage}")(torch.cat([heat, features], dim=1))
        return heat


def load_network(kind: type[Network], checkpoint: Path, hint: str) -> Network:
    """A network with the weights of a file, in float32 on the CPU.

    Args:
        kind: ``bodypose_model`` or ``handpose_model``.
        checkpoint: a released file, whose keys lack the first component (``conv1_1.weight``), or one saved
            from the module (``model0.conv1_1.weight``).
        hint: for the end of the error where the file does not fit.

    Raises:
        ldm.weights.WeightsError: no such file, a damaged one, or one that lacks a tensor, holds others or has
            other shapes.
    """
    with torch.device("meta"):
        network = kind()
    full_names = {key.partition(".")[2]: key for key in network.state_dict()}
    state = {full_names.get(key, key): tensor for key, tensor in read_state_dict(checkpoint).items()}
    load_into(network, state, checkpoint, hint=hint)
    return network


def _first_stage(branch: str, channels: int) -> nn.Sequential:
    layers = [(f"conv5_{i}_CPM_{branch}", 128, 128, 3) for i in (1, 2, 3)]
    layers += [(f"conv5_4_CPM_{branch}", 128, 512, 1), (f"conv5_5_CPM_{branch}", 512, channels, 1)]
    return _layers(layers)


def _stage(name: str, in_channels: int, channels: int, end_with_relu: bool = False) -> nn.Sequential:
    layers = [(f"Mconv{i}_{name}", in_channels if i == 1 else 128, 128, 7) for i in range(1, 6)]
    layers += [(f"Mconv6_{name}", 128, 128, 1), (f"Mconv7_{name}", 128, channels, 1)]
    return _layers(layers, end_with_relu)


def _layers(convolutions: list[tuple[str, int, int, int]], end_with_relu: bool = False) -> nn.Sequential:
    """Convolutions (name, channels in, channels out, kernel), a ReLU after all or after all but the last."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, in_channels, out_channels, kernel in convolutions:
        if name == "pool":
            layers[f"pool{len(layers)}"] = nn.MaxPool2d(2)
        else:
            layers[name] = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
            layers[f"relu_{name}"] = nn.ReLU(inplace=True)
    if not end_with_relu:
        layers.popitem()
    return nn.Sequential(layers)
