"""Finds the state dict in what a checkpoint holds: below a wrapper, or in nested dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts put the weights, beside optimizer and counters."""

_MOST_DEPTH, _MOST_ENTRIES = 4, 100_000


def unwrapped(content: Any) -> Any:
    """The dictionary of tensors in a checkpoint's content.

    Wrappers are taken off. A dictionary without a tensor of its own (a textual inversion, an IP-Adapter, a
    hypernetwork) becomes flat: ``{"a": {"b": tensor}}`` is ``{"a.b": tensor}``. Anything else comes back as
    it is.
    """
    for _ in range(_MOST_DEPTH):
        content = _inner(content) or content
    if not isinstance(content, Mapping) or any(isinstance(value, Tensor) for value in content.values()):
        return content
    return dict(_flat(content)) or content


def _inner(content: Any) -> Mapping[Any, Any] | None:
    if not isinstance(content, Mapping):
        return None
    wrapped = (content.get(name) for name in WRAPPERS)
    return next((inner for inner in wrapped if isinstance(inner, Mapping) and inner), None)


def _flat(content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, by their path. A bounded number of entries is looked at: lists that hold one list many
    times over are short in a file and endless to walk through.
    """
    todo: list[tuple[str, Any, int]] = [("", content, 0)]
    left = _MOST_ENTRIES
    while todo and left > 0:
        prefix, parent, depth = todo.pop()
        pairs = parent.items() if isinstance(parent, Mapping) else enumerate(parent)
        for key, value in pairs:
            left -= 1
            if left < 0:
                return
            if isinstance(value, Tensor):
                yield f"{prefix}{key}", value
            elif isinstance(value, Mapping | list | tuple) and depth < _MOST_DEPTH:
                todo.append((f"{prefix}{key}.", value, depth + 1))
