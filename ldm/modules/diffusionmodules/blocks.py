"""Building blocks of the UNet: residual blocks, up- and downsampling, attention over pixels.

Sources: guided diffusion (arXiv 2105.05233), latent diffusion (2112.10752), and
ldm/modules/diffusionmodules/openaimodel.py of the original, under which name users import all of these.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.attention import SpatialTransformer, attend
from ldm.modules.diffusionmodules.util import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    zero_module,
)
from ldm.modules.residual import plus


class TimestepBlock(nn.Module):
    """A module whose forward takes the time embedding as its second argument."""

    @abstractmethod
    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x ``[B, C, H, W]``, emb ``[B, emb_channels]``."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence that hands time embedding and context to those of its members that take them."""

    def forward(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb[: len(x)])  # fewer rows than emb: see `rows_like`
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class Upsample(nn.Module):
    """Twice the size by nearest neighbour, then a 3x3 convolution: ``[B, C, H, W] -> [B, out_channels, 2H,
    2W]``.

    With ``dims=3`` only the last two dimensions grow.
    """

    def __init__(
        self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1
    ):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        self.dims = dims
        if use_conv:
            self.conv = conv_nd(dims, channels, self.out_channels, 3, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"got {x.shape[1]} channels to upsample, expected {self.channels}")
        size = (
            (x.shape[2], x.shape[3] * 2, x.shape[4] * 2)
            if self.dims == 3
            else [2 * side for side in x.shape[2:]]
        )
        if self.use_conv and hasattr(self.conv, "after_doubling"):
            return self.conv.after_doubling(x)
        x = F.interpolate(x, size=size, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution or average pooling: ``[B, C, H, W] -> [B, out_channels, H/2,
    W/2]``.

    With ``dims=3`` only the last two dimensions shrink.
    """

    def __init__(
        self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None, padding: int = 1
    ):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_conv = use_conv
        stride = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(dims, channels, self.out_channels, 3, stride=stride, padding=padding)
        elif self.out_channels != channels:
            raise ValueError(
                f"pooling keeps {channels} channels; got out_channels {self.out_channels}: set use_conv"
            )
        else:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"got {x.shape[1]} channels to downsample, expected {self.channels}")
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two convolutions and a residual, steered by the time: ``[B, channels, H, W] -> [B, out_channels, H,
    W]``.

    Args:
        channels: input channels.
        emb_channels: channels of the time embedding.
        dropout: rate before the second convolution.
        out_channels: output channels, by default ``channels``.
        use_conv: a 3x3 instead of a 1x1 convolution where the residual changes its channels.
        use_scale_shift_norm: the embedding scales and shifts the second norm instead of being added before
            it.
        dims: 1, 2 or 3.
        use_checkpoint: compute activations again in the backward pass.
        up, down: also double or halve the size.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        self.channels = channels
        self.out_channels = out_channels or channels
        self.use_checkpoint = use_checkpoint
        self.use_scale_shift_norm = use_scale_shift_norm
        self.updown = up or down

        self.in_layers = nn.Sequential(
            normalization(channels), nn.SiLU(), conv_nd(dims, channels, self.out_channels, 3, padding=1)
        )
        if up:
            self.h_upd, self.x_upd = Upsample(channels, False, dims), Upsample(channels, False, dims)
        elif down:
            self.h_upd, self.x_upd = Downsample(channels, False, dims), Downsample(channels, False, dims)
        else:
            self.h_upd = self.x_upd = nn.Identity()
        embedded = 2 * self.out_channels if use_scale_shift_norm else self.out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), linear(emb_channels, embedded))
        self.out_layers = nn.Sequential(
            normalization(self.out_channels),
            nn.SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, self.out_channels, self.out_channels, 3, padding=1)),
        )
        if self.out_channels == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._forward, (x, emb), (), self.use_checkpoint and self.training)

    def _forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if self.updown:
            *norm_and_act, conv = self.in_layers
            h = conv(self.h_upd(nn.Sequential(*norm_and_act)(x)))
            x = self.x_upd(x)
        else:
            h = self.in_layers(x)  # [B, out_channels, H, W]
        emb_out = self.emb_layers(emb).to(h.dtype)
        emb_out = emb_out.view(*emb_out.shape, *(1,) * (h.ndim - 2))  # [B, embedded, 1, 1]
        if self.use_scale_shift_norm:
            norm, *rest = self.out_layers
            scale, shift = emb_out.chunk(2, dim=1)
            h = nn.Sequential(*rest)(norm(h) * (1 + scale) + shift)
            return self.skip_connection(x) + h  # [B, out_channels, H, W]
        return plus(self.skip_connection(x), self.out_layers, h + emb_out)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, where there is no text: ``[B, C, ...]`` both ways, with a residual.

    Args:
        channels: C.
        num_heads: number of heads, unless ``num_head_channels`` is given.
        num_head_channels: channels of a head; -1 takes ``num_heads``.
        use_checkpoint: compute activations again in the backward pass.
        use_new_attention_order: ``qkv`` holds all queries, then all keys, then all values; else they
            alternate by head.

    Attributes:
        slice_size: see `attend`.
    """

    slice_size: int | None = None

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ):
        super().__init__()
        if num_head_channels != -1 and channels % num_head_channels:
            raise ValueError(f"{channels} channels do not divide into heads of {num_head_channels} channels")
        self.channels = channels
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.use_checkpoint = use_checkpoint
        self.use_new_attention_order = use_new_attention_order
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, channels * 3, 1)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._forward, (x,), (), self.use_checkpoint and self.training)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, *spatial = x.shape
        x = x.reshape(batch, channels, math.prod(spatial))  # [B, C, N]
        qkv = self.qkv(self.norm(x))  # [B, 3C, N]
        if self.use_new_attention_order:
            qkv = qkv.view(batch, 3, self.num_heads, -1, x.shape[-1])
        else:
            qkv = qkv.view(batch, self.num_heads, 3, -1, x.shape[-1]).transpose(1, 2)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [B, heads, N, d] each
        h = attend(q, k, v, self.slice_size).transpose(-1, -2).reshape(x.shape)  # [B, C, N]
        return (x + self.proj_out(h)).reshape(batch, channels, *spatial)
