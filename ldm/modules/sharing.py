"""Rows of a batch that are alike are computed once: the two halves of guidance have the same latents, and
differ only from the first attention to the text on. What attention makes of the text is the same in all steps
of a sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

TEXT_MEMORY = "text_memory"
"""Key of a condition: the `TextMemory` of its text, for networks that are ours throughout."""

OURS = ("ldm.", "cldm.", "torch.nn.")


def rows_like(x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
    """``x [B, ...]`` as often as ``other [kB, ...]`` has its rows; as it is where that is None or has no
    more.
    """
    return x if other is None or len(x) >= len(other) else torch.cat([x] * (len(other) // len(x)))


def added(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The sum of two features, of which either may hold once what both halves have in common."""
    return rows_like(x, other) + rows_like(other, x)


class TextMemory:
    """Keys and values of one text, by the layer that made them; it lasts for one sampling.

    It travels with the text's tensor. A slice of that, or a copy in another type, has none, and all is
    computed anew.

    Args:
        texts: what is remembered from: tensors ``[B, M, D]`` that nobody changes meanwhile.
    """

    _name = "_text_memory"

    def __init__(self, texts: Sequence[torch.Tensor]):
        self._texts = tuple(texts)
        self._known: dict[nn.Module, Any] = {}
        self._joined: dict[TextMemory, TextMemory] = {}

    def is_of(self, texts: Sequence[torch.Tensor]) -> bool:
        """Whether these very tensors are remembered, for somebody may have put others in their place."""
        return len(texts) == len(self._texts) and all(a is b for a, b in zip(texts, self._texts, strict=True))

    def joined(self, other: TextMemory, texts: Sequence[torch.Tensor]) -> TextMemory:
        """The memory of this text and another in one batch, of which ``texts`` is one more copy."""
        memory = self._joined.setdefault(other, TextMemory(texts))
        memory._texts = tuple(texts)
        return memory

    def attach(self, context: torch.Tensor) -> torch.Tensor:
        """Let this memory travel with ``context [B, M, D]``, wherever that goes."""
        setattr(context, self._name, self)
        return context

    @classmethod
    def recall(cls, layer: nn.Module, context: torch.Tensor, compute: Callable[[], Any]) -> Any:
        """What ``layer`` computed from ``context`` before, or else computes now."""
        memory = getattr(context, cls._name, None)
        if memory is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if layer not in memory._known:
            memory._known[layer] = compute()
        return memory._known[layer]


def is_plain(network: nn.Module) -> bool:
    """Whether a network computes by this project's methods and torch's alone, and nobody listens: no class,
    method or hook of somebody else would meet a batch of another size than it expects.
    """
    for module in network.modules():
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or {"forward", "_forward"} & vars(module).keys()
        ):
            return False
        methods = filter(None, (getattr(type(module), name, None) for name in ("forward", "_forward")))
        if any(not m.__module__.startswith(OURS) or hasattr(m, "__wrapped__") for m in methods):
            return False
    return True
