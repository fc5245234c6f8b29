"""The denoising UNet of Stable Diffusion.

Sources: guided diffusion (arXiv 2105.05233), latent diffusion (2112.10752), and
ldm/modules/diffusionmodules/openaimodel.py of the original, under which name users import its blocks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm.modules.diffusionmodules.unet_parts import UNetParts
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)
from ldm.modules.sharing import rows_like
from ldm.util import exists

__all__ = [
    "AttentionBlock",
    "Downsample",
    "ResBlock",
    "SpatialTransformer",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "UNetParts",
    "Upsample",
    "avg_pool_nd",
    "checkpoint",
    "conv_nd",
    "exists",
    "linear",
    "normalization",
    "timestep_embedding",
    "zero_module",
]


class UNetModel(UNetParts):
    """UNet with attention and time embedding.

    Args:
        out_channels: channels of the output.
        num_classes: a number of classes for class-conditional models, "continuous" for one number, else None.
        n_embed: predict ids of a codebook of this size instead of latents.
        others: see `UNetParts`.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        *,
        num_classes: int | str | None = None,
        n_embed: int | None = None,
        **options: Any,
    ):
        super().__init__(
            image_size, in_channels, model_channels, num_res_blocks, attention_resolutions, **options
        )
        self.out_channels = out_channels
        self.num_classes = num_classes
        self.predict_codebook_ids = n_embed is not None

        self.time_embed = self.make_time_embed()
        if num_classes == "continuous":
            self.label_emb = linear(1, self.time_embed_dim)
        elif num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.time_embed_dim)
        self.input_blocks, widths = self.make_input_blocks()
        self.middle_block = self.make_middle_block(widths[-1])
        self.output_blocks = self.make_output_blocks(widths)
        self.out = nn.Sequential(
            normalization(model_channels),
            nn.SiLU(),
            zero_module(conv_nd(self.dims, model_channels, out_channels, 3, padding=1)),
        )
        if self.predict_codebook_ids:
            self.id_predictor = nn.Sequential(
                normalization(model_channels), conv_nd(self.dims, model_channels, n_embed, 1)
            )

    def embed_time(self, timesteps: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Time steps ``[B]`` and, for class-conditional models, labels ``[B]`` -> ``[B, 4 *
        model_channels]``.
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(self.dtype))
        if (y is not None) != (self.num_classes is not None):
            raise ValueError(
                f"got labels y={y} for a model with num_classes={self.num_classes}; give both or neither"
            )
        return emb if y is None else emb + self.label_emb(y)

    def encode(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encoder and middle block: ``[B, in_channels, H, W]`` -> lowest feature map, and the skips in
        order.

        Context ``[kB, M, D]`` and emb ``[kB, C]`` may have more rows than x, which all of them share: the
        skips before the first attention to the context then have B rows, the others kB.
        """
        h = x.to(self.dtype)
        context = _cast(context, self.dtype)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb, context)  # [B, C, H / 2^level, W / 2^level]
            skips.append(h)
        return self.middle_block(h, emb, context), skips

    def decode(
        self, h: torch.Tensor, skips: Iterator[torch.Tensor], emb: torch.Tensor, context: torch.Tensor | None
    ) -> torch.Tensor:
        """Decoder: lowest feature map and skips from last to first -> ``[B, out_channels, H, W]``."""
        context = _cast(context, self.dtype)
        for block, skip in zip(self.output_blocks, skips, strict=True):
            h = torch.cat([h, rows_like(skip, h)], dim=1)
            h = block(h, emb, context)  # [B, C, H / 2^level, W / 2^level]
        return self.id_predictor(h) if self.predict_codebook_ids else self.out(h)

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """x ``[B, in_channels, H, W]``, timesteps ``[B]``, context ``[B, M, D]`` -> ``[B, out_channels, H,
        W]``.
        """
        emb = self.embed_time(timesteps, y)
        h, skips = self.encode(x, emb, context)
        return self.decode(h, reversed(skips), emb, context).to(x.dtype)


def _cast(context: torch.Tensor | Sequence[torch.Tensor] | None, dtype: torch.dtype):
    if isinstance(context, list | tuple):
        return [tensor.to(dtype) for tensor in context]
    return None if context is None else context.to(dtype)
