"""The transformer inside Stable Diffusion's UNet.

Sources: latent diffusion (arXiv 2112.10752), GEGLU (2002.05202), and ldm/modules/attention.py of the
original.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ldm.modules import products
from ldm.modules.diffusionmodules.util import checkpoint as run_checkpointed
from ldm.modules.diffusionmodules.util import zero_module
from ldm.modules.regional import RegionalContext
from ldm.modules.residual import plus, takes_residual
from ldm.modules.sharing import TextMemory, rows_like
from ldm.util import default, exists  # noqa: F401 - people import both from here


class GEGLU(nn.Module):
    """Linear layer with a GELU gate: ``[..., dim_in] -> [..., dim_out]``."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self.proj, "gated"):
            return self.proj.gated(x)
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers around a nonlinearity: ``[..., dim] -> [..., dim_out]``.

    Args:
        mult: the hidden layer has ``mult * dim`` channels.
        glu: gate the hidden layer (`GEGLU`) instead of a plain GELU.
    """

    def __init__(
        self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        hidden = int(dim * mult)
        project_in = GEGLU(dim, hidden) if glu else nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.net = nn.Sequential(project_in, nn.Dropout(dropout), nn.Linear(hidden, default(dim_out, dim)))

    @takes_residual
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return self.net(x) if residual is None else plus(residual, self.net, x)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slice_size: int | None = None,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T scale) v for ``[B, heads, N, d]``.

    Args:
        slice_size: how many heads of the whole batch to compute at a time, for little memory: no more than
            ``slice_size`` matrices of N x M scores can exist at once, whichever kernel torch takes. None
            computes all at once.
        scale: None for 1 / sqrt(d).
        mask: bool, for ``[B, heads, N, M]``; what is False is not looked at. None looks at everything.
    """
    if slice_size is None and mask is None and products.pays(query, key, value):
        return products.attend_by_products(query, key, value, scale)
    # For values that lie apart in memory torch has no other kernel than one that makes all N x M scores.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    if slice_size is None:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scale)
    if slice_size < 1:
        raise ValueError(
            f"got a slice size of {slice_size} for attention; expected 1 or more, or None for no slices"
        )
    if mask is not None:
        mask = mask.expand(*query.shape[:-1], key.shape[-2]).flatten(0, 1)
    flat = [tensor.flatten(0, 1).split(slice_size) for tensor in (query, key, value)]  # [slice, N, d] each
    masks = [None] * len(flat[0]) if mask is None else mask.split(slice_size)
    slices = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], m, scale=scale)[0]
        for q, k, v, m in zip(*flat, masks, strict=True)
    ]
    return torch.cat(slices).view(*query.shape[:-1], value.shape[-1])


def set_attention_slice(model: nn.Module, slice_size: int | None) -> None:
    """Let the attention layers of ``model`` compute ``slice_size`` heads at a time, by default all (None)."""
    for module in model.modules():
        if hasattr(module, "slice_size"):
            vars(module).pop("slice_size", None)  # what holds for the class is the default
            if slice_size is not None:
                module.slice_size = slice_size


class CrossAttention(nn.Module):
    """Multi-head attention from ``x`` to ``context``, or to itself where there is none.

    Shapes: x ``[B, N, query_dim]``, context ``[B, M, context_dim]`` -> ``[B, N, query_dim]``. What a bool
    ``mask [B, M]`` has as False is not looked at. The context may be a
    `RegionalContext`.

    Attributes:
        scale: factor of the scores, 1 / sqrt(dim_head).
        slice_size: see `attend`.
    """

    slice_size: int | None = None

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ):
        super().__init__()
        inner_dim = dim_head * heads
        context_dim = default(context_dim, query_dim)
        self.heads = heads
        self.scale = dim_head**-0.5
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(dropout))

    @takes_residual
    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        context = default(context, x)
        whole = context.whole if isinstance(context, RegionalContext) else context
        q = self._split_heads(self.to_q(x))
        k, v = TextMemory.recall(self, whole, lambda: self._keys_and_values(whole))
        seen = None if mask is None else mask.flatten(1)[:, None, None]  # [B, 1, 1, M]
        out = attend(q, k, v, self.slice_size, self.scale, seen)  # [B, heads, N, d]
        if isinstance(context, RegionalContext):
            out = self._with_prompts_of_places(q, out, context)
        out = out.transpose(1, 2).flatten(2)  # [B, N, heads * d]
        return self.to_out(out) if residual is None else plus(residual, self.to_out, out)

    def _with_prompts_of_places(
        self, q: torch.Tensor, out: torch.Tensor, text: RegionalContext
    ) -> torch.Tensor:
        """What queries found in the whole text, ``[B, heads, N, d]`` both, and where other texts hold in
        those.
        """
        rows = len(text.prompts)
        whole, q = out[:rows], q[:rows]
        blended = whole
        keys, values = text.prompts.keys_and_values(self)  # [rows or 1, K, L, heads * d]
        for k, v, weight in zip(keys.unbind(1), values.unbind(1), text.weights.unbind(1), strict=True):
            k, v = (self._split_heads(tensor).expand(rows, -1, -1, -1) for tensor in (k, v))
            found = attend(q, k, v, self.slice_size, self.scale)
            blended = blended + weight[:, None, :, None] * (found - whole)
        return torch.cat([blended, out[rows:]])

    def _keys_and_values(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context))

    def _split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, N, heads * d] -> [B, heads, N, d]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


MemoryEfficientCrossAttention = CrossAttention
"""The original's name for attention by xformers. There is one kind here, with torch's own kernels."""

XFORMERS_IS_AVAILBLE = False
"""Whether the original found xformers, in its spelling."""


def Normalize(in_channels: int) -> nn.GroupNorm:
    """Group normalization as the transformers have it."""
    return nn.GroupNorm(32, in_channels, eps=1e-6)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with its norm and residual: ``[B, N, dim]`` both
    ways.

    Args:
        context_dim: channels of the text embedding; None makes the second attention a self-attention.
        disable_self_attn: the first attention, too, looks at the context.
        checkpoint: compute activations again in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = True,
        disable_self_attn: bool = False,
    ):
        super().__init__()
        self.disable_self_attn = disable_self_attn
        self.checkpoint = checkpoint
        first_context_dim = context_dim if disable_self_attn else None
        self.attn1 = CrossAttention(dim, first_context_dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.ff = FeedForward(dim, dropout=dropout, glu=gated_ff)
        self.attn2 = CrossAttention(dim, context_dim, heads=n_heads, dim_head=d_head, dropout=dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return run_checkpointed(self._forward, (x, context), (), self.checkpoint and self.training)

    def _forward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        if self.disable_self_attn:
            x = rows_like(x, context)
        x = plus(x, self.attn1, self.norm1(x), context if self.disable_self_attn else None)
        x = rows_like(x, context)
        x = plus(x, self.attn2, self.norm2(x), context)
        return plus(x, self.ff, self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map: ``[B, C, H, W]`` both ways, with a residual.

    Args:
        in_channels: C.
        depth: number of blocks.
        context_dim: channels of the text embedding: one number for all blocks, or one for each.
        disable_self_attn: as in `BasicTransformerBlock`: one flag for all blocks, or one for each.
        use_linear: project with linear layers (SD 2.x) instead of 1x1 convolutions (SD 1.x).
        use_checkpoint: compute activations again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | Sequence[int] | None = None,
        disable_self_attn: bool | Sequence[bool] = False,
        use_linear: bool = False,
        use_checkpoint: bool = True,
    ):
        super().__init__()
        inner_dim = n_heads * d_head
        context_dims = _one_per_block(context_dim, depth, "context_dim")
        without_self_attention = _one_per_block(disable_self_attn, depth, "disable_self_attn")
        self.in_channels = in_channels
        self.use_linear = use_linear
        self.norm = Normalize(in_channels)
        self.proj_in = (
            nn.Linear(in_channels, inner_dim) if use_linear else nn.Conv2d(in_channels, inner_dim, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner_dim,
                n_heads,
                d_head,
                dropout=dropout,
                context_dim=context_dims[i],
                disable_self_attn=without_self_attention[i],
                checkpoint=use_checkpoint,
            )
            for i in range(depth)
        )
        self.proj_out = zero_module(
            nn.Linear(inner_dim, in_channels) if use_linear else nn.Conv2d(inner_dim, in_channels, 1)
        )

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """x ``[B, C, H, W]``; context ``[B, M, context_dim]``, or a list with one such tensor for each
        block.
        """
        height, width = x.shape[-2:]
        if isinstance(context, RegionalContext):
            context = context.seen_from(height, width)
        contexts = context if isinstance(context, list | tuple) else [context] * len(self.transformer_blocks)
        h = self.norm(x)  # [B, C, H, W]
        if not self.use_linear:
            h = self.proj_in(h)  # [B, inner, H, W]
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # [B, HW, C or inner]
        if self.use_linear:
            h = self.proj_in(h)  # [B, HW, inner]
        for block, block_context in zip(self.transformer_blocks, contexts, strict=True):
            h = block(h, context=block_context)  # [B, HW, inner]
        if self.use_linear:
            h = self.proj_out(h)  # [B, HW, C]
        h = h.unflatten(1, (height, width)).permute(
            0, 3, 1, 2
        )  # [B, C or inner, H, W], channels last in memory
        x = rows_like(x, h)
        return x + h if self.use_linear else plus(x, self.proj_out, h)  # [B, C, H, W]


def _one_per_block(value: object, depth: int, name: str) -> list:
    """A list of ``depth`` values from one value or a sequence (a YAML list counts as one)."""
    values = list(value) if isinstance(value, Sequence) else [value] * depth
    if len(values) != depth:
        raise ValueError(
            f"got {len(values)} values for {name}; expected one for each of {depth} transformer blocks"
        )
    return values
