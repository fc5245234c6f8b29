"""UniFormer: convolutions where features are local, attention where they are global
(https://arxiv.org/abs/2201.09450).

The module names give the state-dict keys of the released segmentation weights (the original's
``annotator/uniformer/mmseg/models/backbones/uniformer.py``). Importing this module registers the backbone
with mmseg.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.uniformer.openmmlab import import_mmseg

import_mmseg()

from mmcv.cnn.bricks import DropPath  # noqa: E402 - after mmseg's quiet import
from mmseg.registry import MODELS  # noqa: E402


class PatchEmbed(nn.Module):
    """Shrink by ``patch_size`` and normalise the channels: ``[B, C, H, W]`` -> ``[B, D, H / patch, W /
    patch]``.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(self.norm, self.proj(x))


class ConvMlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    """Local block: position by a depthwise convolution, 5x5 "attention", and an MLP. ``[B, D, H, W]`` -> the
    same.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        self.attn = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.conv2(self.attn(self.conv1(self.norm1(x)))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens. ``[B, N, D]`` -> the same."""

    def __init__(self, dim: int, head_dim: int, qkv_bias: bool):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # [B, N, 3, heads, head_dim]
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, head_dim]
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Global block: position by a depthwise convolution, self-attention, and an MLP. ``[B, D, H, W]`` -> the
    same.
    """

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float, qkv_bias: bool, drop_path: float):
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, head_dim, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # [B, H * W, D]
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.transpose(1, 2).unflatten(2, (height, width))


@MODELS.register_module()
class UniFormer(nn.Module):
    """Four stages at 1/4, 1/8, 1/16 and 1/32 of the picture: two of convolutions, two of global attention.

    Args:
        embed_dim: channels of the stages; the last two must be multiples of ``head_dim``.
        layers: blocks of the stages.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of an MLP by its outer channels.
        qkv_bias: whether the query, key and value projections have a bias.
        drop_path_rate: stochastic depth of the last block in training; it grows linearly from 0.
        in_channels: channels of the picture.

    Returns (forward):
        Four feature maps ``[B, embed_dim[i], H / 2**(i + 2), W / 2**(i + 2)]`` of a ``[B, in_channels, H,
        W]`` picture.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        embed_dim: Sequence[int] = (64, 128, 320, 512),
        layers: Sequence[int] = (3, 4, 8, 3),
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
    ):
        super().__init__()
        if len(embed_dim) != 4 or len(layers) != 4:
            raise ValueError(
                f"UniFormer has four stages, got embed_dim {list(embed_dim)} and layers {list(layers)}."
            )
        if any(dim % head_dim for dim in embed_dim[2:]):
            raise ValueError(
                f"The last two of embed_dim {list(embed_dim)} must be multiples of head_dim {head_dim}."
            )
        drop_path = torch.linspace(0, drop_path_rate, sum(layers), device="cpu").tolist()
        widths = [in_channels, *embed_dim]
        for stage, (dim, depth) in enumerate(zip(embed_dim, layers, strict=True), start=1):
            rates, drop_path = drop_path[:depth], drop_path[depth:]
            if stage <= 2:
                blocks = [ConvBlock(dim, mlp_ratio, rate) for rate in rates]
            else:
                blocks = [AttentionBlock(dim, head_dim, mlp_ratio, qkv_bias, rate) for rate in rates]
            setattr(
                self,
                f"patch_embed{stage}",
                PatchEmbed(widths[stage - 1], dim, patch_size=4 if stage == 1 else 2),
            )
            setattr(self, f"blocks{stage}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage}", nn.LayerNorm(dim, eps=1e-6))
        self.apply(_init_linear)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = []
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"blocks{stage}"):
                x = block(x)
            features.append(channel_norm(getattr(self, f"norm{stage}"), x))
        return tuple(features)


def channel_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a LayerNorm over the channels of ``[B, D, H, W]``; without a copy where ``x`` is in channels-last
    order.
    """
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
