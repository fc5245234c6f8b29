"""The network, and how a condition enters it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ldm.util import instantiate_from_config

CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")


class DiffusionWrapper(nn.Module):
    """The network under the key that checkpoints have it under, and the way a condition takes into it.

    Args:
        diff_model_config: YAML node of the network.
        conditioning_key: None; "concat" (channels beside x); "crossattn" (context); "hybrid" (both); "adm"
            (labels).
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(
                f"conditioning_key {conditioning_key!r} unknown; expected one of {CONDITIONING_KEYS}"
            )
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Sequence[torch.Tensor] | None = None,
        c_crossattn: Sequence[torch.Tensor] | None = None,
        c_adm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x ``[B, C, H, W]``, t ``[B]`` -> ``[B, out_channels, H, W]``."""
        key = self.conditioning_key
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *c_concat], dim=1)
        if key in ("crossattn", "hybrid"):
            return self.diffusion_model(x, t, context=torch.cat(list(c_crossattn), dim=1))
        if key == "adm":
            return self.diffusion_model(x, t, y=c_adm)
        return self.diffusion_model(x, t)
