"""The layers of transformers' BiT for inference: weights standardised once, sums that keep their digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.bit.modeling_bit import WeightStandardizedConv2d


def rearrange_backbone(model: nn.Module) -> None:
    """Replace BiT's convolutions and normalisations in a model by those of this module, in place."""
    from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, WeightStandardizedConv2d):
                plain = _standardized(layer)
                setattr(parent, name, nn.Sequential(layer.pad, plain) if layer.pad else plain)
            elif isinstance(layer, nn.GroupNorm):
                setattr(parent, name, nn.Sequential(ExactGroupNorm(layer), layer.activation))


def _standardized(layer: WeightStandardizedConv2d) -> nn.Conv2d:
    """The ordinary convolution that does what this one does (Qiao et al.,
    https://arxiv.org/abs/1903.10520).
    """
    weight = layer.weight.detach().double()
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
    with torch.device("meta"):
        plain = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
        )
    plain.weight = nn.Parameter(((weight - mean) / (variance + layer.eps).sqrt()).to(layer.weight.dtype))
    return plain


class ExactGroupNorm(nn.Module):
    """Group normalisation, ``[B, C, H, W] -> [B, C, H, W]``, for maps with channels last in memory.

    For these torch adds up all pixels one after the other on a CPU, in float32. At 384x384 that alone moved
    the depth by 5e-5 of itself; ``mean`` adds up in a tree.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1).float()
        of_channels = torch.stack([pixels.mean(dim=(1, 2)), pixels.square().mean(dim=(1, 2))])  # [2, B, C]
        mean, square = of_channels.double().unflatten(2, (self.groups, -1)).mean(dim=3, keepdim=True)
        scale = (square - mean * mean + self.eps).rsqrt() * self.weight.view(self.groups, -1)
        shift = self.bias.view(self.groups, -1) - mean * scale  # [B, groups, C / groups]
        scale, shift = (values.flatten(1)[:, :, None, None].to(x.dtype) for values in (scale, shift))
        return torch.addcmul(shift, x, scale)
