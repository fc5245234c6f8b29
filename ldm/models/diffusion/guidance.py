"""Classifier-free guidance (arXiv 2207.12598): both conditions in one batch wherever that is possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from ldm.modules.regional import REGIONAL
from ldm.modules.sharing import TEXT_MEMORY

PLAIN = "plain_networks"
"""Key of a condition: whether its networks may compute once what both halves of guidance have in common."""

SHARED_HALVES = "shared_halves"
"""Key of a joined condition whose halves have the same latents and hint, for networks that may."""

FURTHER = "further_controls"
"""Key of a condition: what steers beside its own hint, each a mapping with the keys that concern a hint."""

WINDOW = "control_window"
"""Key of a condition whose hint acts in a part of the run: (start, end), shares of the steps in [0, 1]."""

REGION = "control_region"
"""Key of a condition whose hint acts in a part of the picture: weights in [0, 1], ``[1, 1, h, w]`` in latent
pixels."""

_OF_BOTH_HALVES = ("control_model", WINDOW, REGION)

ApplyModel = TypeVar("ApplyModel", bound=Callable[..., torch.Tensor])


def takes_joined_conditions(apply_model: ApplyModel) -> ApplyModel:
    """Marks an ``apply_model`` that takes conditions as samplers make them: the two of guidance joined to one
    batch, and with what the model's ``prepare_condition`` has computed.

    One that somebody else wrote, in a subclass or in its place, is called as the original called it: with
    one condition after the other, as they are. A wrapper made by ``functools.wraps`` keeps the mark.
    """
    apply_model.takes_joined_conditions = True
    return apply_model


def knows_joined_conditions(model: Any) -> bool:
    """Whether the model's ``apply_model`` is marked so."""
    return getattr(model.apply_model, "takes_joined_conditions", False)


def guided_output(
    model: Any, x: torch.Tensor, t: torch.Tensor, cond: Any, uncond: Any = None, scale: float = 1.0
) -> torch.Tensor:
    """The model's output for ``cond``, pushed away from that for ``uncond``: ``[B, C, H, W]``.

    Args:
        model: anything with ``apply_model(x, t, cond)``.
        x: noisy latents ``[B, C, H, W]``.
        t: time steps ``[B]``.
        scale: 1 is no guidance, nor is an ``uncond`` of None.
    """
    if uncond is None or scale == 1.0:
        return model.apply_model(x, t, cond)
    joined = join_conditions(cond, uncond) if knows_joined_conditions(model) else None
    if joined is None:
        with_cond, without = model.apply_model(x, t, cond), model.apply_model(x, t, uncond)
    else:
        with_cond, without = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), joined).chunk(2)
    return without + scale * (with_cond - without)


def guidance_scales(scale: float, schedule: Sequence[float] | None, steps: int) -> Sequence[float]:
    """The guidance scale of each step.

    Raises:
        ValueError: a schedule of another length.
    """
    if schedule is None:
        return [scale] * steps
    if len(schedule) != steps:
        raise ValueError(f"got {len(schedule)} values in ucg_schedule; expected {steps}, one for each step")
    return schedule


def interval_schedule(scale: float, steps: int, start: float = 0.0, end: float = 1.0) -> list[float]:
    """A guidance scale for each step: ``scale`` in an interval of the run, else 1, which is no guidance and
    half the work (arXiv 2404.07724).

    Args:
        start, end: shares of the run in [0, 1]; a step counts by its middle.
    """
    return [scale if start <= (i + 0.5) / steps <= end else 1.0 for i in range(steps)]


def join_conditions(cond: Any, uncond: Any) -> Any:
    """One condition for a batch of 2B, with ``cond`` in its first half; None where the two do not fit
    together.

    Where only ``cond`` has a hint (guess mode), the joined hint keeps B rows, which steer the first half
    alone. Where a control is weaker in one half, each of its scales becomes ``[2B, 1, 1, 1]``.
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
        if key == PLAIN:
            joined[SHARED_HALVES] = bool(value and other and _have_one_hint(cond, uncond))
        elif key == TEXT_MEMORY:
            continue
        elif key == "control_scales":
            joined[key] = _joined_scales(cond, uncond)
        elif (
            key in _OF_BOTH_HALVES
            or value is None
            or (other is None and key in ("c_concat", "hint_embedding", REGIONAL))
        ):
            joined[key] = value
        else:
            joined[key] = join_conditions(value, other)
            if joined[key] is None:
                return None
    if all(TEXT_MEMORY in c and c[TEXT_MEMORY].is_of(c["c_crossattn"]) for c in (cond, uncond)):
        joined[TEXT_MEMORY] = cond[TEXT_MEMORY].joined(uncond[TEXT_MEMORY], joined["c_crossattn"])
    return joined


def _joined_scales(cond: Mapping[str, Any], uncond: Mapping[str, Any]) -> Any:
    """The scales of a control in both halves: those of ``cond``, unless ``uncond`` has other numbers for its
    own hint."""
    scales, others = cond["control_scales"], uncond.get("control_scales")
    steers_both = cond.get("c_concat") is not None and uncond.get("c_concat") is not None
    if not (steers_both and _are_numbers(scales) and _are_numbers(others)) or list(scales) == list(others):
        return scales
    hint = cond["c_concat"][0]
    rows = [hint.new_tensor(pair).repeat_interleave(len(hint)) for pair in zip(scales, others, strict=False)]
    return [scale[:, None, None, None] for scale in rows]


def _are_numbers(scales: Any) -> bool:
    return isinstance(scales, list | tuple) and all(isinstance(scale, int | float) for scale in scales)


def _have_one_hint(cond: Mapping[str, Any], uncond: Mapping[str, Any]) -> bool:
    """Whether one and the same hint steers both halves, or the first half alone."""
    hint, other = cond.get("c_concat"), uncond.get("c_concat")
    return hint is None or other is None or all(a is b for a, b in zip(hint, other, strict=True))


def check_rows(cond: Any, batch_size: int, what: str = "a condition") -> None:
    """Refuse a condition for another batch size, which would fail deep inside the network.

    Args:
        what: its name in the error.

    Raises:
        ValueError: a tensor of the condition has not ``batch_size`` rows.
    """
    if isinstance(cond, Mapping):
        for name, value in cond.items():
            if name in ("c_concat", "c_crossattn", FURTHER) and value is not None:
                check_rows(value, batch_size, what)
    elif isinstance(cond, list | tuple):
        for value in cond:
            check_rows(value, batch_size, what)
    elif torch.is_tensor(cond) and len(cond) != batch_size:
        raise ValueError(f"got {what} for a batch of {len(cond)}; expected batch_size={batch_size}")
