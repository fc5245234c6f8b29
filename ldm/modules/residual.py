"""Residuals that are added along with a product, where a layer can: one rounding and one tensor less."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Forward = TypeVar("Forward", bound=Callable[..., torch.Tensor])


def takes_residual(forward: Forward) -> Forward:
    """Marks a ``forward`` with an argument ``residual``, to which it adds its result.

    Forwards of somebody else, put in place of ours, get the arguments of the original.
    """
    forward.takes_residual = True
    return forward


def plus(residual: torch.Tensor, module: nn.Module, *inputs: torch.Tensor | None) -> torch.Tensor:
    """``residual + module(*inputs)``, in any shape; a sequence's last layer counts as its own.

    Who listens to the module, or computes in its place, sees what the module alone gives.
    """
    if is_heard(module):
        return residual + module(*inputs)
    if getattr(module.forward, "takes_residual", False):
        return module(*inputs, residual=residual)
    if type(module) is nn.Sequential and len(module) and len(inputs) == 1:
        layers = [layer for layer in module if module.training or type(layer) is not nn.Dropout]
        if layers and getattr(layers[-1].forward, "takes_residual", False):
            x = inputs[0]
            for layer in layers[:-1]:
                x = layer(x)
            return plus(residual, layers[-1], x)
    return residual + module(*inputs)


def is_heard(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
