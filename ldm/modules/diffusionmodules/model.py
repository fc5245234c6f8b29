"""Encoder and decoder of Stable Diffusion's VAE.

Sources: VQGAN (arXiv 2012.09841), latent diffusion (2112.10752), and ldm/modules/diffusionmodules/model.py of
the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules.attention import attend
from ldm.modules.residual import plus
from ldm.modules.strips import convolved, doubled, halved, in_strips, one_by_one


def Normalize(in_channels: int, num_groups: int = 32) -> nn.GroupNorm:
    """Group normalization as the VAE has it."""
    return nn.GroupNorm(num_groups, in_channels, eps=1e-6)


class Upsample(nn.Module):
    """``[B, C, H, W] -> [B, C, 2H, 2W]`` by nearest neighbour, and a 3x3 convolution where ``with_conv``."""

    def __init__(self, in_channels: int, with_conv: bool):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return doubled(x, self._whole) if in_strips(self, x, 2) else self._whole(x)

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        if self.with_conv and hasattr(self.conv, "after_doubling"):
            return self.conv.after_doubling(x)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


class Downsample(nn.Module):
    """``[B, C, H, W] -> [B, C, H/2, W/2]`` by a strided convolution, or by average pooling without
    ``with_conv``.
    """

    def __init__(self, in_channels: int, with_conv: bool):
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.with_conv and in_strips(self, x):
            return halved(x, self.conv)
        # The weights were trained with padding on the right and at the bottom only.
        return self.conv(F.pad(x, (0, 1, 0, 1))) if self.with_conv else F.avg_pool2d(x, 2)


class ResnetBlock(nn.Module):
    """Two convolutions with a residual: ``[B, in_channels, H, W] -> [B, out_channels, H, W]``.

    Args:
        conv_shortcut: a 3x3 instead of a 1x1 convolution where the residual changes its channels.
        num_groups: of the group normalizations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float = 0.0,
        num_groups: int = 32,
    ):
        super().__init__()
        out_channels = out_channels or in_channels
        self.norm1 = Normalize(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Normalize(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        elif in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_strips(self, x):
            h = convolved(x, self.norm1, self.conv1)
            beside = partial(self._beside, x)
            return convolved(h, self.norm2, self.conv2, beside, overwrite=True)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.dropout(F.silu(self.norm2(h)))
        return plus(self._beside(x), self.conv2, h)

    def _beside(self, x: torch.Tensor, rows: slice = slice(None)) -> torch.Tensor:
        """What rows of the result are added to; without their own neighbours, the first and last are not
        right where the shortcut is 3x3.
        """
        x = x[:, :, rows]
        if hasattr(self, "conv_shortcut"):
            return self.conv_shortcut(x)
        return self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x


class AttnBlock(nn.Module):
    """Self-attention with one head over all pixels, ``[B, C, H, W]`` both ways, with a residual."""

    def __init__(self, in_channels: int, num_groups: int = 32):
        super().__init__()
        self.norm = Normalize(in_channels, num_groups)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (
            layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )  # [B, 1, HW, C]
        h = attend(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:])  # [B, C, H, W]
        return plus(x, self.proj_out, h)


class _Level(nn.Module):
    """One resolution: residual blocks, with attention after each where wanted, and a change of size."""

    def __init__(self, blocks: list[ResnetBlock], attentions: list[AttnBlock]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)

    def layers(self) -> Iterator[nn.Module]:
        """All that a feature map goes through. Whoever calls them one by one need not hold what the first of
        them got.
        """
        for i, block in enumerate(self.block):
            yield block
            if len(self.attn):
                yield self.attn[i]
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                yield getattr(self, name)


class _Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, num_groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, dropout=dropout, num_groups=num_groups)
        self.attn_1 = AttnBlock(channels, num_groups)
        self.block_2 = ResnetBlock(channels, dropout=dropout, num_groups=num_groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def _level(
    channels: int, out_channels: int, blocks: int, attention: bool, dropout: float, num_groups: int
) -> _Level:
    widths = [channels] + [out_channels] * blocks
    residual = [ResnetBlock(a, b, dropout=dropout, num_groups=num_groups) for a, b in pairwise(widths)]
    return _Level(residual, [AttnBlock(out_channels, num_groups) for _ in range(blocks)] if attention else [])


class Encoder(nn.Module):
    """Pictures ``[B, in_channels, H, W]`` -> means and log-variances ``[B, 2 z_channels, H/f, W/f]``.

    Args:
        ch: channels of the first level.
        out_ch: channels of the decoder's pictures (unused here; the YAML has one list for both).
        ch_mult: channels of each level as multiples of ``ch``; f is ``2 ** (levels - 1)``.
        num_res_blocks: residual blocks on each level.
        attn_resolutions: sides of the feature maps that get attention, for pictures of ``resolution``.
        dropout: rate inside the residual blocks.
        resamp_with_conv: convolutions when the size changes.
        in_channels: channels of the pictures.
        resolution: their side in training.
        z_channels: channels of the latents.
        double_z: give variances too.
        attn_type: only "vanilla", and no ``use_linear_attn``.
        num_groups: of the group normalizations, 32 in all released models. Narrow networks need fewer: groups
            of a single channel hide how bright a picture is.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ):
        super().__init__()
        _check_attention(attn_type, use_linear_attn)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        widths = [ch, *(ch * mult for mult in ch_mult)]
        self.largest_map = widths[1]  # channels at the size of the pictures
        self.down = nn.ModuleList()
        for level, (width, out_width) in enumerate(pairwise(widths)):
            with_attention = resolution // 2**level in attn_resolutions
            down = _level(width, out_width, num_res_blocks, with_attention, dropout, num_groups)
            if level < len(ch_mult) - 1:
                down.downsample = Downsample(out_width, resamp_with_conv)
            self.down.append(down)
        self.mid = _Middle(widths[-1], dropout, num_groups)
        self.norm_out = Normalize(widths[-1], num_groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if one_by_one(self, x, self.largest_map):
            return torch.cat([self(picture) for picture in x.split(1)])
        h = self.conv_in(x)  # [B, ch, H, W]
        for level in self.down:
            for layer in level.layers():
                h = layer(h)  # [B, C, H / 2^level, W / 2^level], and at last half of it
        h = self.mid(h)  # [B, C, H / f, W / f]
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents ``[B, z_channels, h, w]`` -> pictures ``[B, out_ch, f h, f w]``, about in [-1, 1].

    Args:
        give_pre_end: stop before the last norm and convolution.
        tanh_out: bound the pictures by tanh.
        others: as in `Encoder`.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ):
        super().__init__()
        _check_attention(attn_type, use_linear_attn)
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        widths = [ch * mult for mult in ch_mult]
        self.largest_map = widths[min(1, len(widths) - 1)]  # channels at the size of the pictures
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], dropout, num_groups)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            width_below = widths[min(level + 1, len(widths) - 1)]
            with_attention = resolution // 2**level in attn_resolutions
            up = _level(width_below, width, num_res_blocks + 1, with_attention, dropout, num_groups)
            if level > 0:
                up.upsample = Upsample(width, resamp_with_conv)
            self.up.append(up)
        self.norm_out = Normalize(widths[0], num_groups)
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the last convolution, by which adversarial losses balance themselves."""
        return self.conv_out.weight

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if one_by_one(self, z, self.largest_map, 2 ** (len(self.up) - 1)):
            return torch.cat([self(latent) for latent in z.split(1)])
        h = self.mid(self.conv_in(z))  # [B, C, h, w]
        for level in reversed(self.up):
            for layer in level.layers():
                h = layer(h)  # [B, C, 2^k h, 2^k w], and at last twice as large
        if self.give_pre_end:
            return h
        if in_strips(self, h):
            h = convolved(h, self.norm_out, self.conv_out)
        else:
            h = self.conv_out(F.silu(self.norm_out(h)))  # [B, out_ch, f h, f w]
        return torch.tanh(h) if self.tanh_out else h


def _check_attention(attn_type: str, use_linear_attn: bool) -> None:
    if attn_type not in ("vanilla", "vanilla-xformers") or use_linear_attn:
        raise ValueError(
            f"got attn_type={attn_type!r}, use_linear_attn={use_linear_attn}; the VAE has vanilla attention "
            "only"
        )
