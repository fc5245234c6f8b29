"""Bounds for the x_0 that a sampler predicts.

Sources: "dynamic thresholding" of Imagen (arXiv 2205.11487), and ldm/models/diffusion/sampling_util.py of the
original.
"""

from __future__ import annotations

import torch


def norm_thresholding(x0: torch.Tensor, value: float) -> torch.Tensor:
    """Scale each sample of ``x0 [B, ...]`` down so that the root of its mean square is at most ``value``."""
    size = x0.pow(2).flatten(1).mean(1).sqrt().clamp(min=value)  # [B]
    return x0 * (value / size.view(-1, *(1,) * (x0.ndim - 1)))


def spatial_norm_thresholding(x0: torch.Tensor, value: float) -> torch.Tensor:
    """The same for each place of ``x0 [B, C, H, W]``: the root of the mean square over its channels."""
    return x0 * (value / x0.pow(2).mean(1, keepdim=True).sqrt().clamp(min=value))
