"""The detectors as the original runs them: one peer a module, for ``benchmarks.detectors``.

Each module has a function that makes the pairs to compare, ours and the original's way with the same weights,
for a folder to write weights to, the side of a square picture in pixels, a device, and the type of our side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn


class Pair(NamedTuple):
    """Two calls that must give the same."""

    name: str
    ours: Callable[[], Any]
    original: Callable[[], Any]
    agreement: Callable[[Any, Any], str]
    """How alike the two results are, in words. Raises a Differ where they are not alike in float32."""


class Differ(RuntimeError):
    """The two sides do not compute the same, so that their times cannot be compared."""

    def __init__(self, why: str):
        super().__init__(f"{why}: the times cannot be compared")


def equal_values(ours: np.ndarray, original: np.ndarray) -> str:
    """The share of equal values in two maps, at least 99.9 %."""
    same = np.mean(ours == original)
    if not same >= 0.999:
        raise Differ(f"only {same:.2%} of the values are equal")
    return f"{same:.3%} of the values equal"


def relative_difference(ours: np.ndarray, original: np.ndarray, most: float = 5e-5) -> str:
    """The norm of the difference over that of the original's."""
    error = np.linalg.norm(ours - original) / np.linalg.norm(original)
    if not error < most:
        raise Differ(f"the relative difference is {error:.1e}")
    return f"relative difference {error:.1e}"


def random_weights(network: nn.Module) -> nn.Module:
    """Weights with which activations keep their size from layer to layer."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network.eval().requires_grad_(False)
