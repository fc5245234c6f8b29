"""3x3 convolutions with a quarter of the multiplications, for inference in float32 on a CPU.

Winograd's F(4x4, 3x3) (Lavin and Gray, https://arxiv.org/abs/1509.09308). A tile of 6x6 pixels becomes 36
numbers per channel; each is multiplied by a matrix of its own; and the 36 products become 4x4 pixels of the
result. So 36 multiplications take the place of 144, for the price of changing there and back, which pays
where channels are many. Algebraically it is the same convolution; its rounding is about four times that of
the direct one, some 1e-6 of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.onednn import can_pack

_KERNEL = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
"""24 G of the paper: three values of a kernel -> six."""

_INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
"""B^T of the paper: six pixels of a tile -> six values."""

_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
"""A^T of the paper: six products -> four pixels of the result."""

LEAST_CHANNELS = 64
"""Narrower convolutions, or as narrow on both sides, gain nothing."""

LEAST_PIXELS = 32 * 32
"""Smaller pictures have too few tiles to fill the products."""

MOST_CHANNELS = 256
"""The matrices of wider ones, more than 9 MiB each, are not kept but made anew."""

MANY_PIXELS = 64 * 64
"""Of all pictures together: from these on it pays to make matrices anew."""

_GEOMETRY = ([0, 0], [1, 1], [1, 1], 36)
"""Padding, stride, dilation and groups of the 1x1 convolution that multiplies."""

_GROUP = 64  # tiles are multiplied so many at a time: oneDNN's layout of the matrices depends on it
_VALUES_AT_ONCE = 2**21  # of tiles: 8 MiB, which should stay in the processor's cache


def use_winograd(model: nn.Module, least_channels: int = LEAST_CHANNELS) -> int:
    """Replace 3x3 convolutions of a model on the CPU by `WinogradConv2d`, in place.

    Only those in float32 with stride 1, padding 1, at least so many channels, and twice as many on one side:
    narrower ones would gain nothing. Each holds its weights a second time, four times as large. The state
    dict stays the same.

    Returns:
        how many layers were replaced.
    """
    if not can_pack():
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _fits(child) and child.in_channels * child.out_channels >= 2 * least_channels**2:
                setattr(parent, name, WinogradConv2d(child))
                count += 1
    return count


def _fits(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or (layer.groups, layer.padding_mode) != (1, "zeros"):
        return False
    if (layer.kernel_size, layer.stride, layer.padding, layer.dilation) != ((3, 3), (1, 1), (1, 1), (1, 1)):
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"


def pays(x: Tensor, weight_shape: torch.Size, geometry: tuple[tuple[int, ...], ...]) -> bool:
    """Whether a convolution of ``x`` is faster this way. ``geometry`` is its padding, stride and dilation."""
    pixels = x.shape[-2] * x.shape[-1]
    return (
        x.dtype == torch.float32
        and weight_shape[2:] == (3, 3)
        and geometry == ((1, 1), (1, 1), (1, 1))
        and weight_shape[0] * weight_shape[1] >= 2 * LEAST_CHANNELS**2
        and pixels >= LEAST_PIXELS
        and (keeps(weight_shape) or len(x) * pixels >= MANY_PIXELS)
    )


def keeps(weight_shape: torch.Size) -> bool:
    """Whether a layer's matrices are small enough to be kept."""
    return weight_shape[0] * weight_shape[1] <= MOST_CHANNELS**2


def matrices_of(weight: Tensor) -> Tensor:
    """Weights ``[O, C, 3, 3]`` -> the 36 matrices that multiply, in oneDNN's layout, four times as large."""
    kernel = torch.tensor(_KERNEL, dtype=torch.float64) / 24
    change = torch.kron(kernel, kernel).float()  # [36, 9]
    matrices = change @ weight.detach().reshape(-1, 9).T  # [36, O C]
    matrices = matrices.reshape(-1, weight.shape[1], 1, 1).to_mkldnn()
    shape = [1, 36 * weight.shape[1], _GROUP, 1]
    return torch._C._nn.mkldnn_reorder_conv2d_weight(matrices, *_GEOMETRY, shape)


def convolve(x: Tensor, matrices: Tensor, bias: Tensor | None, out_channels: int) -> Tensor:
    """The convolution of ``x [B, C, H, W]`` with the weights that `matrices_of` got: ``[B, O, H, W]``,
    channels last in memory.
    """
    pictures = x.permute(0, 2, 3, 1)
    batch, height, width, _ = pictures.shape
    rows, columns = -(-height // 4), -(-width // 4)  # of tiles
    result = x.new_empty(batch, 4 * rows, 4 * columns, out_channels)
    at_once = max(1, _VALUES_AT_ONCE // (36 * columns * max(out_channels, x.shape[1])))
    for picture, out in zip(pictures, result, strict=True):
        for top in range(0, 4 * rows, 4 * at_once):
            _convolve_band(picture, top, out[top : top + 4 * at_once], matrices, bias)
    return result[:, :height, :width].permute(0, 3, 1, 2)


def _convolve_band(picture: Tensor, top: int, out: Tensor, matrices: Tensor, bias: Tensor | None) -> None:
    """``[H, W, C]`` -> ``[4 rows, 4 columns, O]``, the rows of the result from ``top`` on."""
    height, width, channels = picture.shape
    rows, columns = out.shape[0] // 4, out.shape[1] // 4
    padded = picture.new_zeros(4 * rows + 2, 4 * columns + 2, channels)  # from a row and a column before
    first, last = max(0, top - 1), min(height, top + 4 * rows + 1)
    padded[first - top + 1 : last - top + 1, 1 : width + 1] = picture[first:last]

    count = rows * columns
    tiles = picture.new_empty(-(-count // _GROUP) * _GROUP, 36, channels)
    tiles[count:] = 0
    overlapping = padded.unfold(0, 6, 4).unfold(1, 6, 4).permute(0, 1, 3, 4, 2)
    tiles[:count].view(rows, columns, 6, 6, channels).copy_(overlapping)
    values = torch.matmul(_twice(_INPUT), tiles).view(-1, _GROUP, 1, 36 * channels).permute(0, 3, 1, 2)
    products = torch.ops.mkldnn._convolution_pointwise(values, matrices, None, *_GEOMETRY, "none", [], "")
    products = products.permute(0, 2, 3, 1).reshape(-1, 36, out.shape[2])[:count]
    pixels = torch.matmul(_twice(_OUTPUT), products).view(rows, columns, 4, 4, -1).transpose(1, 2)
    torch.add(pixels, 0 if bias is None else bias, out=out.view(rows, 4, columns, 4, -1))


def _twice(matrix: list[list[int]]) -> Tensor:
    """The change of rows and columns at once: ``[n, 6] -> [n n, 36]``."""
    one = torch.tensor(matrix, dtype=torch.float32)
    return torch.kron(one, one)


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 by Winograd: ``[B, C, H, W] -> [B, O, H, W]``, channels
    last in memory. It takes no gradients, and its weights stay what they are: float32 on the CPU.
    """

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._matrices = matrices_of(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("a Winograd convolution takes no gradients; train with the ordinary layers")
        return convolve(x, self._matrices, self.bias, len(self.weight))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        raise ValueError(f"{prefix}weight cannot be changed any more; load before `use_winograd`")

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        probe = fn(torch.empty(0))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            kind = f"{probe.dtype} on {probe.device}"
            raise ValueError(f"Winograd convolutions stay float32 on the CPU; {kind} was asked for")
        return super()._apply(fn, recurse)
