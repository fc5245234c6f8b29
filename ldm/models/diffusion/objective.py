"""What a diffusion model is trained for, beyond its own definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TrainingObjective:
    """Which time steps and places count in the loss, and how much; by default all count alike.

    Args:
        min_snr_gamma: weigh time steps by min-SNR (arXiv 2303.09556) with this bound, 5 in the paper; None
            weighs all alike.
        first_time_step: train on time steps from this one on only.
        place_weights: gives for a batch's condition the weights ``[B, 1, H, W]`` of a sample's places, 1 on
            average, or None where all count alike.
    """

    min_snr_gamma: float | None = None
    first_time_step: int = 0
    place_weights: Callable[[Any], torch.Tensor | None] | None = None
