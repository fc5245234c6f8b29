"""How a condition's hints become what one step of the UNet takes from its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def steering(
    network: nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor,
    cond: Mapping[str, Any],
    scales: Sequence[float],
    shared: bool = False,
) -> list[torch.Tensor]:
    """The outputs of a control network, scaled, one for each skip connection and the middle block.

    Args:
        network: a `ControlNet`, or one of its form.
        x: noisy latents ``[B, 4, h, w]``.
        t: time steps ``[B]``.
        context: text embeddings ``[B, M, D]``.
        cond: the condition of `ControlLDM.apply_model`. Hints with fewer than B rows steer the first rows
            only; the others get zeros.
        scales: a factor for each output, where the condition has none of its own. More of them than outputs
            are fine: scripts set 13, also for smaller models.
        shared: both halves of guidance have the same latents and hints, so that the network, which knows of
            this, gets the latents once.

    Raises:
        ValueError: more hints than latents, or fewer scales than outputs.
    """
    hint = torch.cat(list(cond["c_concat"]), dim=1)  # [rows, 3, 8h, 8w]
    rows, unsteered = hint.shape[0], x.shape[0] - hint.shape[0]
    if unsteered < 0:
        raise ValueError(f"got {rows} hints for a batch of {x.shape[0]} latents; expected as many or fewer")
    embedding = {"hint_embedding": cond["hint_embedding"]} if "hint_embedding" in cond else {}
    latents = x[: rows // 2] if shared and not unsteered else x[:rows]
    outputs = list(network(x=latents, hint=hint, timesteps=t[:rows], context=context[:rows], **embedding))
    scales = scales if cond.get("control_scales") is None else cond["control_scales"]
    if len(scales) < len(outputs):
        raise ValueError(f"got {len(scales)} control scales; expected {len(outputs)}, one for each output")
    outputs = [output * scale for output, scale in zip(outputs, scales, strict=False)]
    return [_with_zeros(output, unsteered) for output in outputs] if unsteered else outputs


def _with_zeros(output: torch.Tensor, rows: int) -> torch.Tensor:
    """``output [B, ...]`` and ``rows`` rows of zeros, which steer nothing."""
    return torch.cat([output, output.new_zeros(rows, *output.shape[1:])])
