"""Conditions as batches: joining the two of classifier-free guidance, and checking their size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def join_conditions(cond: Any, uncond: Any) -> Any:
    """One condition for a batch of 2B, with ``cond`` in its first half; None where the two do not fit
    together.

    Where only ``cond`` has a hint (guess mode), the joined hint keeps B rows, which steer the first half
    alone.
    """
    if torch.is_tensor(cond):
        return torch.cat([cond, uncond]) if torch.is_tensor(uncond) and cond.shape == uncond.shape else None
    if isinstance(cond, list | tuple):
        if not isinstance(uncond, list | tuple) or len(cond) != len(uncond):
            return None
        parts = [join_conditions(a, b) for a, b in zip(cond, uncond, strict=True)]
        return None if any(part is None for part in parts) else parts
    if not isinstance(cond, Mapping) or not isinstance(uncond, Mapping):
        return None
    if cond.get("c_concat") is None and uncond.get("c_concat") is not None:
        return None
    joined = {}
    for key, value in cond.items():
        other = uncond.get(key)
        if (
            key in ("control_scales", "control_model")
            or value is None
            or (other is None and key in ("c_concat", "hint_embedding"))
        ):
            joined[key] = value
        else:
            joined[key] = join_conditions(value, other)
            if joined[key] is None:
                return None
    return joined


def check_rows(cond: Any, batch_size: int, what: str = "a condition") -> None:
    """Refuse a condition for another batch size, which would fail deep inside the network.

    Args:
        what: its name in the error.

    Raises:
        ValueError: a tensor of the condition has not ``batch_size`` rows.
    """
    if isinstance(cond, Mapping):
        for name, value in cond.items():
            if name in ("c_concat", "c_crossattn") and value is not None:
                check_rows(value, batch_size, what)
    elif isinstance(cond, list | tuple):
        for value in cond:
            check_rows(value, batch_size, what)
    elif torch.is_tensor(cond) and len(cond) != batch_size:
        raise ValueError(f"got {what} for a batch of {len(cond)}; expected batch_size={batch_size}")
