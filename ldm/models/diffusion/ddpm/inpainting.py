"""Latent diffusion that fills holes: the UNet sees mask and masked picture beside the noisy latent.

Source: `LatentInpaintDiffusion` in ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ldm.models.diffusion.ddpm.ddpm import DDPM
from ldm.models.diffusion.ddpm.latent_diffusion import LatentDiffusion


class LatentInpaintDiffusion(LatentDiffusion):
    """Latent diffusion with a ``conditioning_key`` of "hybrid": text, and channels beside the latent.

    Args:
        concat_keys: keys of a batch that become these channels, in this order, each ``[B, H, W, C]``.
        masked_image_key: the one among them that is a picture in [-1, 1] with its hole at 0, and is encoded
            by the VAE; the others are resized to the latent.
        finetune_keys: kept for the YAML; must be None.
        others: see `LatentDiffusion`.
    """

    def __init__(
        self,
        *args,
        concat_keys: Sequence[str] = ("mask", "masked_image"),
        masked_image_key: str = "masked_image",
        finetune_keys: Sequence[str] | None = None,
        **kwargs,
    ):
        if finetune_keys is not None or masked_image_key not in concat_keys:
            raise ValueError(
                f"got finetune_keys={finetune_keys}, masked_image_key={masked_image_key!r} and "
                f"concat_keys={list(concat_keys)}; expected no finetune_keys, and the picture's key in "
                "concat_keys"
            )
        super().__init__(*args, **kwargs)
        self.concat_keys = tuple(concat_keys)
        self.masked_image_key = masked_image_key

    @torch.no_grad()
    def get_input(
        self, batch: Mapping[str, Any], k: str, *args, bs: int | None = None, **kwargs
    ) -> tuple[Any, ...]:
        """See `LatentDiffusion.get_input`; the condition is ``c_concat [B, C, H/8, W/8]`` and
        ``c_crossattn``.
        """
        latent, context, *others = super().get_input(batch, k, *args, bs=bs, **kwargs)
        channels = []
        for key in self.concat_keys:
            value = DDPM.get_input(self, batch, key)[:bs]  # [B, C, H, W]
            if key == self.masked_image_key:
                channels.append(self.get_first_stage_encoding(self.encode_first_stage(value)))
            else:
                channels.append(F.interpolate(value, size=latent.shape[-2:]))
        return latent, {"c_concat": [torch.cat(channels, dim=1)], "c_crossattn": [context]}, *others

    def unconditional_like(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The empty prompt, with the same channels beside the latent."""
        rows = len(cond["c_crossattn"][0])
        return {**cond, "c_crossattn": [self.get_unconditional_conditioning(rows)]}
