"""What the UNet and its control copy are built from, in the same way.

Sources: guided diffusion (arXiv 2105.05233), latent diffusion (2112.10752), and
ldm/modules/diffusionmodules/openaimodel.py of the original.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules.blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    TimestepEmbedSequential,
    Upsample,
)
from ldm.modules.diffusionmodules.util import conv_nd, linear


class UNetParts(nn.Module):
    """The values of a UNet's constructor, kept as attributes, and the parts that follow from them.

    It registers no part itself: `UNetModel` and `ControlNet` do, each in the order of the released files.

    Args:
        image_size: side of the latent; kept for the YAML, any size of a multiple of ``2 ** (levels - 1)``
            works.
        in_channels: channels of the input.
        model_channels: channels of the first level.
        num_res_blocks: residual blocks on each level: one number, or one for each level.
        attention_resolutions: downsampling rates (1, 2, 4 ...) at which there is attention.
        dropout: rate inside the residual blocks.
        channel_mult: channels of each level, as multiples of ``model_channels``.
        conv_resample: convolutions when the size changes, else pooling and nearest neighbour.
        dims: 1, 2 or 3 for signals, pictures, volumes.
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
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
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
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
    ):
        super().__init__()
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.num_res_blocks = (
            [num_res_blocks] * len(channel_mult) if isinstance(num_res_blocks, int) else list(num_res_blocks)
        )
        self.attention_resolutions = tuple(attention_resolutions)
        self.dropout = dropout
        self.channel_mult = tuple(channel_mult)
        self.conv_resample = conv_resample
        self.dims = dims
        self.use_checkpoint = use_checkpoint
        self.num_heads = num_heads
        self.num_head_channels = num_head_channels
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resblock_updown = resblock_updown
        self.use_new_attention_order = use_new_attention_order
        self.use_spatial_transformer = use_spatial_transformer
        self.transformer_depth = transformer_depth
        self.context_dim = context_dim
        self.disable_self_attentions = disable_self_attentions
        self.num_attention_blocks = num_attention_blocks
        self.disable_middle_self_attn = disable_middle_self_attn
        self.use_linear_in_transformer = use_linear_in_transformer
        self.time_embed_dim = model_channels * 4
        self._dtype: torch.dtype | None = None
        self._check()

    def _check(self) -> None:
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError(
                f"use_spatial_transformer is {self.use_spatial_transformer} and context_dim is "
                f"{self.context_dim}: cross-attention needs both, self-attention neither"
            )
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("set num_heads or num_head_channels; both are -1")
        for name in ("num_res_blocks", "disable_self_attentions", "num_attention_blocks"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.channel_mult):
                raise ValueError(
                    f"{name} has {len(values)} values; expected one for each of {self.channel_mult}"
                )

    @property
    def dtype(self) -> torch.dtype:
        """What inputs are cast to: the type of the weights, unless another was set."""
        return self._dtype or self.input_blocks[0][0].weight.dtype

    @dtype.setter
    def dtype(self, value: torch.dtype) -> None:
        self._dtype = value

    def convert_to_fp16(self) -> None:
        """Have the weights, and with them all that is computed, as float16."""
        self.half()

    def convert_to_fp32(self) -> None:
        """Have the weights as float32 again."""
        self.float()

    # ---- parts

    def make_time_embed(self) -> nn.Sequential:
        """``[B, model_channels] -> [B, 4 * model_channels]``."""
        width = self.time_embed_dim
        return nn.Sequential(linear(self.model_channels, width), nn.SiLU(), linear(width, width))

    def make_input_blocks(self) -> tuple[nn.ModuleList, list[int]]:
        """The encoder, and the number of channels that each of its blocks gives."""
        channels = self.model_channels
        blocks = [TimestepEmbedSequential(conv_nd(self.dims, self.in_channels, channels, 3, padding=1))]
        widths = [channels]
        last_level = len(self.channel_mult) - 1
        for level, mult in enumerate(self.channel_mult):
            for block in range(self.num_res_blocks[level]):
                layers = [self._res_block(channels, mult * self.model_channels)]
                channels = mult * self.model_channels
                if self._has_attention(level, block):
                    layers.append(
                        self._attention(channels, self._skips_self_attention(level), self.num_heads)
                    )
                blocks.append(TimestepEmbedSequential(*layers))
                widths.append(channels)
            if level != last_level:
                if self.resblock_updown:
                    down = self._res_block(channels, channels, down=True)
                else:
                    down = Downsample(channels, self.conv_resample, self.dims, channels)
                blocks.append(TimestepEmbedSequential(down))
                widths.append(channels)
        return nn.ModuleList(blocks), widths

    def make_middle_block(self, channels: int) -> TimestepEmbedSequential:
        """Residual block, attention, residual block, at the lowest resolution."""
        return TimestepEmbedSequential(
            self._res_block(channels, channels),
            self._attention(channels, self.disable_middle_self_attn, self.num_heads),
            self._res_block(channels, channels),
        )

    def make_output_blocks(self, widths: Sequence[int]) -> nn.ModuleList:
        """The decoder; ``widths`` are the channels of the encoder's blocks, taken from last to first."""
        skips = list(widths)
        channels = skips[-1]
        num_heads = self.num_heads if self.use_spatial_transformer else self.num_heads_upsample
        blocks = []
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            res_blocks = self.num_res_blocks[level]
            for block in range(res_blocks + 1):
                layers = [self._res_block(channels + skips.pop(), mult * self.model_channels)]
                channels = mult * self.model_channels
                if self._has_attention(level, block):
                    layers.append(self._attention(channels, self._skips_self_attention(level), num_heads))
                if level and block == res_blocks:
                    if self.resblock_updown:
                        layers.append(self._res_block(channels, channels, up=True))
                    else:
                        layers.append(Upsample(channels, self.conv_resample, self.dims, channels))
                blocks.append(TimestepEmbedSequential(*layers))
        return nn.ModuleList(blocks)

    def _res_block(self, channels: int, out_channels: int, **updown: bool) -> ResBlock:
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

    def _attention(self, channels: int, disable_self_attn: bool, num_heads: int) -> nn.Module:
        """Attention for a feature map: with the text (`SpatialTransformer`) or among its pixels
        (`AttentionBlock`).
        """
        head_channels = self.num_head_channels
        if head_channels == -1:
            head_channels = channels // num_heads
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

    def _has_attention(self, level: int, block: int) -> bool:
        """Whether a residual block is followed by attention; levels shrink by 1, 2, 4 ..."""
        wanted = self.num_attention_blocks
        return 2**level in self.attention_resolutions and (wanted is None or block < wanted[level])

    def _skips_self_attention(self, level: int) -> bool:
        return bool(self.disable_self_attentions and self.disable_self_attentions[level])
