"""The denoising UNet of Stable Diffusion, and the builders that it shares with ControlNet.

Sources: guided diffusion (arXiv 2105.05233), latent diffusion (2112.10752), and
ldm/modules/diffusionmodules/openaimodel.py of the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
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
from ldm.modules.diffusionmodules.util import (
    conv_nd,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)

__all__ = [
    "AttentionBlock",
    "Downsample",
    "ResBlock",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "UNetPlan",
    "Upsample",
    "build_input_blocks",
    "build_middle_block",
    "build_output_blocks",
    "build_time_embed",
]


@dataclass(frozen=True)
class UNetPlan:
    """What the builders need to know of a UNet; the fields are the YAML's names, explained at `UNetModel`."""

    in_channels: int
    model_channels: int
    num_res_blocks: int | Sequence[int]
    attention_resolutions: Sequence[int]
    dropout: float = 0
    channel_mult: Sequence[int] = (1, 2, 4, 8)
    conv_resample: bool = True
    dims: int = 2
    use_checkpoint: bool = False
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int = 1
    context_dim: int | Sequence[int] | None = None
    disable_self_attentions: Sequence[bool] | None = None
    num_attention_blocks: Sequence[int] | None = None
    disable_middle_self_attn: bool = False
    use_linear_in_transformer: bool = False

    def __post_init__(self) -> None:
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError(
                f"use_spatial_transformer is {self.use_spatial_transformer} and context_dim is "
                f"{self.context_dim}: "
                "cross-attention needs both, self-attention neither"
            )
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("set num_heads or num_head_channels; both are -1")
        for name in ("num_res_blocks", "disable_self_attentions", "num_attention_blocks"):
            values = getattr(self, name)
            if isinstance(values, Sequence) and len(values) != len(self.channel_mult):
                raise ValueError(
                    f"{name} has {len(values)} values; expected one for each of {self.channel_mult}"
                )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> UNetPlan:
        """The plan among a constructor's arguments, its ``locals()``; what else is there is left out."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def time_embed_dim(self) -> int:
        return self.model_channels * 4

    def res_blocks_at(self, level: int) -> int:
        """Number of residual blocks on a level of the encoder."""
        blocks = self.num_res_blocks
        return blocks[level] if isinstance(blocks, Sequence) else blocks

    def has_attention(self, level: int, block: int) -> bool:
        """Whether a residual block is followed by attention; levels shrink by 1, 2, 4 ..."""
        wanted = self.num_attention_blocks
        return 2**level in self.attention_resolutions and (wanted is None or block < wanted[level])

    def res_block(self, channels: int, out_channels: int, **updown: bool) -> ResBlock:
        return ResBlock(
            channels,
            self.time_embed_dim,
            self.dropout,
            out_channels=out_channels,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            use_scale_shift_norm=self.use_scale_shift_norm,
            **updown,
        )

    def attention(self, channels: int, disable_self_attn: bool, num_heads: int) -> nn.Module:
        """Attention for a feature map: with the text (`SpatialTransformer`) or among its pixels
        (`AttentionBlock`).
        """
        if self.num_head_channels == -1:
            head_channels = channels // num_heads
        else:
            head_channels = self.num_head_channels
        if not self.use_spatial_transformer:
            return AttentionBlock(
                channels, num_heads, head_channels, self.use_checkpoint, self.use_new_attention_order
            )
        return SpatialTransformer(
            channels,
            channels // head_channels,
            head_channels,
            depth=self.transformer_depth,
            context_dim=self.context_dim,
            disable_self_attn=disable_self_attn,
            use_linear=self.use_linear_in_transformer,
            use_checkpoint=self.use_checkpoint,
        )

    def disables_self_attention(self, level: int) -> bool:
        return bool(self.disable_self_attentions and self.disable_self_attentions[level])


def build_time_embed(plan: UNetPlan) -> nn.Sequential:
    """``[B, model_channels] -> [B, 4 * model_channels]``."""
    width = plan.time_embed_dim
    return nn.Sequential(linear(plan.model_channels, width), nn.SiLU(), linear(width, width))


def build_input_blocks(plan: UNetPlan) -> tuple[nn.ModuleList, list[int]]:
    """The encoder, and the number of channels that each of its blocks gives."""
    channels = plan.model_channels
    blocks = [TimestepEmbedSequential(conv_nd(plan.dims, plan.in_channels, channels, 3, padding=1))]
    widths = [channels]
    last_level = len(plan.channel_mult) - 1
    for level, mult in enumerate(plan.channel_mult):
        for block in range(plan.res_blocks_at(level)):
            layers = [plan.res_block(channels, mult * plan.model_channels)]
            channels = mult * plan.model_channels
            if plan.has_attention(level, block):
                layers.append(plan.attention(channels, plan.disables_self_attention(level), plan.num_heads))
            blocks.append(TimestepEmbedSequential(*layers))
            widths.append(channels)
        if level != last_level:
            if plan.resblock_updown:
                down = plan.res_block(channels, channels, down=True)
            else:
                down = Downsample(channels, plan.conv_resample, plan.dims, channels)
            blocks.append(TimestepEmbedSequential(down))
            widths.append(channels)
    return nn.ModuleList(blocks), widths


def build_middle_block(plan: UNetPlan, channels: int) -> TimestepEmbedSequential:
    """Residual block, attention, residual block, at the lowest resolution."""
    return TimestepEmbedSequential(
        plan.res_block(channels, channels),
        plan.attention(channels, plan.disable_middle_self_attn, plan.num_heads),
        plan.res_block(channels, channels),
    )


def build_output_blocks(plan: UNetPlan, widths: Sequence[int]) -> nn.ModuleList:
    """The decoder; ``widths`` are the channels of the encoder's blocks, which it takes from last to first."""
    skips = list(widths)
    channels = skips[-1]
    own_heads = plan.num_heads_upsample != -1 and not plan.use_spatial_transformer
    num_heads = plan.num_heads_upsample if own_heads else plan.num_heads
    blocks = []
    for level, mult in reversed(list(enumerate(plan.channel_mult))):
        res_blocks = plan.res_blocks_at(level)
        for block in range(res_blocks + 1):
            layers = [plan.res_block(channels + skips.pop(), mult * plan.model_channels)]
            channels = mult * plan.model_channels
            if plan.has_attention(level, block):
                layers.append(plan.attention(channels, plan.disables_self_attention(level), num_heads))
            if level and block == res_blocks:
                if plan.resblock_updown:
                    layers.append(plan.res_block(channels, channels, up=True))
                else:
                    layers.append(Upsample(channels, plan.conv_resample, plan.dims, channels))
            blocks.append(TimestepEmbedSequential(*layers))
    return nn.ModuleList(blocks)


class UNetModel(nn.Module):
    """UNet with attention and time embedding.

    Args:
        image_size: side of the latent; kept for the YAML, any size of a multiple of ``2 ** (levels - 1)``
            works.
        in_channels: channels of the input.
        model_channels: channels of the first level.
        out_channels: channels of the output.
        num_res_blocks: residual blocks on each level: one number, or one for each level.
        attention_resolutions: downsampling rates (1, 2, 4 ...) at which there is attention.
        dropout: rate inside the residual blocks.
        channel_mult: channels of each level, as multiples of ``model_channels``.
        conv_resample: convolutions when the size changes, else pooling and nearest neighbour.
        dims: 1, 2 or 3 for signals, pictures, volumes.
        num_classes: a number of classes for class-conditional models, "continuous" for one number, else None.
        use_checkpoint: compute activations again in the backward pass (training only).
        use_fp16: kept for the YAML; the type follows the weights.
        num_heads: heads of each attention, unless num_head_channels is given.
        num_head_channels: channels of each head.
        num_heads_upsample: another number of heads for the decoder's `AttentionBlock`, -1 for the same.
        use_scale_shift_norm: the time embedding scales and shifts instead of being added.
        resblock_updown: residual blocks change the size.
        use_new_attention_order: see `AttentionBlock`.
        use_spatial_transformer: attention with text.
        transformer_depth: blocks in each transformer.
        context_dim: channels of the text embedding.
        n_embed: predict codebook ids instead of latents.
        legacy: kept for the YAML; the number of heads follows from the two arguments above.
        disable_self_attentions: for each level, whether transformers skip self-attention.
        num_attention_blocks: for each level, how many blocks have attention.
        disable_middle_self_attn: the same for the middle block.
        use_linear_in_transformer: SD 2.x's linear projections.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | str | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        n_embed: int | None = None,
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
    ):
        super().__init__()
        plan = UNetPlan.of(locals())
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_classes = num_classes
        self.predict_codebook_ids = n_embed is not None

        self.time_embed = build_time_embed(plan)
        if num_classes == "continuous":
            self.label_emb = linear(1, plan.time_embed_dim)
        elif num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, plan.time_embed_dim)
        self.input_blocks, widths = build_input_blocks(plan)
        self.middle_block = build_middle_block(plan, widths[-1])
        self.output_blocks = build_output_blocks(plan, widths)
        self.out = nn.Sequential(
            normalization(model_channels),
            nn.SiLU(),
            zero_module(conv_nd(dims, model_channels, out_channels, 3, padding=1)),
        )
        if self.predict_codebook_ids:
            self.id_predictor = nn.Sequential(
                normalization(model_channels), conv_nd(dims, model_channels, n_embed, 1)
            )

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which inputs are cast to."""
        return self.input_blocks[0][0].weight.dtype

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
            h = block(torch.cat([h, skip], dim=1), emb, context)  # [B, C, H / 2^level, W / 2^level]
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
