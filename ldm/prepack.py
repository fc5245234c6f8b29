"""Weights laid out once, as oneDNN's kernels want them, for inference on a CPU.

A convolution of torch lays its weights out anew on every call. Where the map is small and the channels are many, as in the
two lowest levels of Stable Diffusion's UNet, that costs more than the convolution itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Below this many weights the layout costs little, and large maps do better with the layout that torch chooses.
SMALLEST = 2**19
# A linear layer is read as it lies by the BLAS; only with many weights and few rows does another layout pay.
SMALLEST_LINEAR = 2**22
DTYPES = (torch.float32, torch.bfloat16)


def prepack(module: nn.Module) -> nn.Module:
    """Replace the large convolutions and linear layers inside ``module``, in place, by packed ones, and return it.

    For inference only: what is packed has no gradient, no state dict, and stays on the CPU in its type. It takes the
    place of the plain weights, so that the model needs no more memory than before. Nothing changes where torch comes
    without oneDNN, on other devices and in other types than float32 and bfloat16.
    """
    if not torch.backends.mkldnn.is_available():
        return module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_packable(child, SMALLEST) and child.padding_mode == "zeros":
                setattr(parent, name, PackedConv2d(child))
            elif type(child) is nn.Linear and _is_packable(child, SMALLEST_LINEAR):
                setattr(parent, name, PackedLinear(child))
    return module


def _is_packable(layer: nn.Conv2d | nn.Linear, smallest: int) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype in DTYPES and weight.numel() >= smallest


class _Packed(nn.Module):
    """A layer whose weight is an opaque tensor, kept away from everything that would read or move it."""

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.packed = self._pack(layer)
        self.plain_bias = None if layer.bias is None else layer.bias.detach()

    def _pack(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        probe = torch.empty(1, dtype=self.packed.dtype)
        moved = fn(probe)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            raise RuntimeError(
                f"this model is packed for inference on the CPU in {probe.dtype} and cannot become {moved.dtype} on "
                f"{moved.device}: load it anew for that"
            )
        return self

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        raise RuntimeError(f"{prefix}weight is packed for inference: save the model before it is packed")

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        raise RuntimeError(f"{prefix}weight is packed for inference: load weights before the model is packed")


class PackedConv2d(_Packed):
    """`torch.nn.Conv2d` with its weight laid out once."""

    def _pack(self, layer: nn.Conv2d) -> Tensor:
        padding = layer.padding
        if isinstance(padding, str):
            same = [(size - 1) * step // 2 for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
            padding = same if padding == "same" else [0, 0]
        self.geometry = (list(padding), list(layer.stride), list(layer.dilation), layer.groups)
        return torch._C._nn.mkldnn_reorder_conv2d_weight(layer.weight.detach().to_mkldnn(), *self.geometry)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W] -> [B, out_channels, H', W']``."""
        padding, stride, dilation, groups = self.geometry
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.plain_bias, padding, stride, dilation, groups, "none", [], ""
        )


class PackedLinear(_Packed):
    """`torch.nn.Linear` with its weight laid out once."""

    def _pack(self, layer: nn.Linear) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features] -> [..., out_features]``."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.plain_bias, "none", [], "")
