"""Weights laid out for oneDNN ahead of time, for faster inference on a CPU.

Eager torch lays a convolution's weights out anew on every call; for a UNet's wide layers on small feature
maps that takes longer than the convolution itself. Packed layers do it once for each input shape. They hold
no second copy of their weights, give the same state dict, and cannot be trained; `unpack_weights` makes them
ordinary again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ldm import winograd
from ldm.modules.attention import GEGLU
from ldm.modules.residual import takes_residual
from ldm.onednn import can_pack

__all__ = ["PackedConv2d", "PackedGate", "PackedLinear", "can_pack", "pack_weights", "unpack_weights"]

PACKED_TYPES = (torch.float32, torch.bfloat16)


def pack_weights(model: nn.Module) -> int:
    """Replace the convolutions and linear layers of a model on the CPU by packed ones, in place.

    Layers that are on another device, of another type than float32 or bfloat16, or have an unusual form, stay
    as they are. Numbers change by rounding only.

    Returns:
        how many layers were replaced.
    """
    return _replace(model, _packed) if can_pack() else 0


def unpack_weights(model: nn.Module) -> int:
    """Undo `pack_weights`, in place; returns how many layers were replaced."""
    return _replace(model, lambda _, layer: layer.unpacked() if isinstance(layer, _PackedLayer) else None)


def _replace(model: nn.Module, replacement_for) -> int:
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            replacement = replacement_for(parent, child)
            if replacement is not None:
                setattr(parent, name, replacement)
                count += 1
    return count


def _packed(parent: nn.Module, layer: nn.Module) -> nn.Module | None:
    """The packed form of a layer, or None where it has none."""
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return None
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in PACKED_TYPES:
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    if isinstance(layer, nn.Linear):
        return PackedGate(layer) if type(parent) is GEGLU else PackedLinear(layer)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return PackedConv2d(layer)


class _Layout(NamedTuple):
    """A weight, and the input shape that its layout was chosen for."""

    weight: torch.Tensor
    input_shape: tuple[int, ...] | None


class _PackedLayer(nn.Module):
    """What packed layers have in common. The layout is one attribute, so that threads with two shapes do no
    harm.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.bias = layer.bias
        self._layout = _Layout(layer.weight.detach(), None)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in its present layout; its type and shape are those of the ordinary layer."""
        return self._layout.weight

    def _check(self, x: torch.Tensor) -> None:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(
                "packed weights take no gradients; call ldm.packing.unpack_weights(model) before training"
            )

    def _weight_for(self, x: torch.Tensor) -> torch.Tensor:
        self._check(x)
        layout = self._layout
        if layout.input_shape != x.shape:
            layout = self._layout = _Layout(self._pack(_dense(layout.weight), x), x.shape)
        return layout.weight

    def _pack(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = _dense(self.weight)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        raise ValueError(f"{prefix}weight is packed; call ldm.packing.unpack_weights(model) before loading")

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        probe = fn(torch.empty(0, dtype=self.weight.dtype))
        if probe.device.type != "cpu" or probe.dtype != self.weight.dtype:
            raise ValueError(
                f"packed weights stay {self.weight.dtype} on the CPU; to have them as {probe.dtype} on "
                f"{probe.device}, "
                "call ldm.packing.unpack_weights(model) first"
            )
        return super()._apply(fn, recurse)

    def _restore(self, layer: nn.Module) -> nn.Module:
        layer.weight = nn.Parameter(_dense(self.weight), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)


class PackedConv2d(_PackedLayer):
    """A convolution with packed weights: ``[B, C, H, W] -> [B, O, H', W']``, channels last in memory.

    Those of 3x3 in float32 go by Winograd where pictures are large. Its matrices are kept from the first time
    on where they are small.
    """

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        self.geometry = (layer.padding, layer.stride, layer.dilation)
        self._quarters: tuple[PackedConv2d, ...] = ()
        self._matrices: torch.Tensor | None = None

    def _pack(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self.geometry, 1, list(x.shape))

    @takes_residual
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if winograd.pays(x, self.weight.shape, self.geometry):
            return self._by_winograd(x, residual)
        layer = (self._weight_for(x), self.bias, *self.geometry, 1)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *layer, "none", [], "")
        other = residual.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, other, *layer, "add", 1.0, None, [], None)

    def _by_winograd(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        self._check(x)
        matrices = self._matrices
        if matrices is None:
            matrices = winograd.matrices_of(_dense(self.weight))
            if winograd.keeps(self.weight.shape):
                self._matrices = matrices
        result = winograd.convolve(x, matrices, self.bias, self.weight.shape[0])
        return result if residual is None else result.add_(residual)

    def after_doubling(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of ``x`` at twice its size by nearest neighbour: ``[B, C, H, W]`` -> ``[B, O, 2H,
        2W]``.

        Every other pixel of the result sees only 2x2 different pixels of ``x``, with the sums of the weights
        that fall on each: four convolutions that do 4 / 9 of the multiplications, and nothing is enlarged.
        """
        if self.geometry != ((1, 1), (1, 1), (1, 1)) or self.weight.shape[2:] != (3, 3):
            return self(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if not self._quarters:
            self._quarters = tuple(self._quarter(row, column) for row in (0, 1) for column in (0, 1))
        batch, _, height, width = x.shape
        shape = (batch, self.weight.shape[0], 2 * height, 2 * width)
        result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        for index, quarter in enumerate(self._quarters):
            row, column = divmod(index, 2)
            seen = quarter(x)[:, :, row : row + height, column : column + width]
            result[:, :, row::2, column::2] = seen
        return result

    def _quarter(self, row: int, column: int) -> PackedConv2d:
        """The convolution for the pixels of even or odd rows and columns; with padding on all sides it gives
        a row and a column too many.
        """
        weight = _pair_sums(_pair_sums(_dense(self.weight).float(), 2, row), 3, column)
        with torch.device("meta"):
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 2, padding=1)
        layer.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)
        layer.bias = self.bias
        return PackedConv2d(layer)

    def unpacked(self) -> nn.Conv2d:
        """The ordinary layer."""
        (out_channels, in_channels, *kernel), (padding, stride, dilation) = self.weight.shape, self.geometry
        with torch.device("meta"):
            layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation)
        return self._restore(layer)


class PackedLinear(_PackedLayer):
    """A linear layer with packed weights: ``[..., I] -> [..., O]``.

    Args:
        activation: "gelu" is computed along with the product.
    """

    def __init__(self, layer: nn.Linear, activation: str = "none"):
        super().__init__(layer)
        self.activation = activation

    def _pack(self, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, x.numel() // x.shape[-1])

    @takes_residual
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is not None:
            return self._combined(x, residual, "add")
        weight = self._weight_for(x)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, self.activation, [], "none")

    def times(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The layer's result, without its activation, times ``factor``."""
        return self._combined(x, factor, "mul")

    def _combined(self, x: torch.Tensor, other: torch.Tensor, operation: str) -> torch.Tensor:
        weight = self._weight_for(x)
        other = other.to(x.dtype).contiguous()
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, self.bias, operation)

    def unpacked(self) -> nn.Linear:
        """The ordinary layer."""
        out_features, in_features = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(in_features, out_features)
        return self._restore(layer)


class PackedGate(_PackedLayer):
    """The linear layer of a `GEGLU`, ``[..., I] -> [..., 2 O]``, in two halves: `gated` computes the gate's
    GELU along with its product.
    """

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.bias = layer.bias
        weights = layer.weight.detach().chunk(2)
        biases = (None, None) if self.bias is None else self.bias.detach().chunk(2)
        self._halves = tuple(
            map(_half, weights, biases, ("none", "gelu"))
        )  # a tuple: the keys stay one layer's

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight, as a copy in the ordinary layout."""
        return torch.cat([_dense(half.weight) for half in self._halves])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        """value · GELU(gate), ``[..., I] -> [..., O]``."""
        value, gate = self._halves
        return value.times(x, gate(x))

    def unpacked(self) -> nn.Linear:
        """The ordinary layer."""
        out_features, in_features = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(in_features, out_features)
        return self._restore(layer)


def _half(weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> PackedLinear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return PackedLinear(layer, activation)


def _pair_sums(weight: torch.Tensor, dim: int, odd: int) -> torch.Tensor:
    """Three weights along ``dim`` -> two, for even or odd pixels of a doubled picture: two neighbours are the
    same pixel."""
    first, middle, last = weight.split(1, dim)
    return torch.cat([first + middle, last] if odd else [first, middle + last], dim)


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_dense() if weight.is_mkldnn else weight
