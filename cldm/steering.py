"""How a condition's hints become what one step of the UNet takes from its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import nn

from ldm.models.diffusion.guidance import FURTHER, PLAIN, REGION, SHARED_HALVES, WINDOW
from ldm.modules.diffusionmodules.blocks import Downsample
from ldm.modules.sharing import TEXT_MEMORY, TextMemory, added, is_plain, rows_like

Part = Mapping[str, Any]
"""What a condition says about one of its controls."""


def control_outputs(
    model: Any, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, cond: Part
) -> list[torch.Tensor] | None:
    """What steers a `ControlLDM`: the outputs of all controls of a condition that have a hint, added as
    diffusers' ``MultiControlNetModel`` adds them; None where there is none. Arguments as `steering` has them.
    """
    controls = []
    for part in (cond, *cond.get(FURTHER, ())):
        if part.get("c_concat") is not None:
            network = model.network_of(part)
            shared = bool(part.get(SHARED_HALVES)) and getattr(network, "knows_embeddings", False)
            controls.append(steering(network, x, t, context, part, model.control_scales, shared))
    if len(controls) < 2:
        return controls[0] if controls else None
    return [reduce(added, outputs) for outputs in zip(*controls, strict=True)]


def prepared(part: Part, unet: nn.Module, network: Any) -> Part:
    """What a condition says about one control, with what stays the same over a sampling added; see
    `ControlLDM.prepare_condition`.
    """
    if PLAIN not in part:
        part = {**part, PLAIN: is_plain(unet) and is_plain(network)}
    embeds = getattr(network, "knows_embeddings", False) and hasattr(network, "input_hint_block")
    if not embeds or part.get("c_concat") is None or "hint_embedding" in part:
        return part
    return {**part, "hint_embedding": network.embed_hint(torch.cat(list(part["c_concat"]), dim=1))}


def with_text_memory(cond: Part) -> Part:
    """A prepared condition that remembers what attention makes of its text, if all networks are ours."""
    ours = all(part[PLAIN] for part in (cond, *cond.get(FURTHER, ())))
    if not ours or TEXT_MEMORY in cond or "c_crossattn" not in cond:
        return cond
    return {**cond, TEXT_MEMORY: TextMemory(cond["c_crossattn"])}


def each_control(cond: Part, change: Callable[[Part], Part]) -> Part:
    """A condition with ``change`` made to what it says about each of its controls."""
    changed = change(cond)
    return {**changed, FURTHER: [change(part) for part in cond[FURTHER]]} if cond.get(FURTHER) else changed


def at_step(cond: Part, step: int, steps: int, scales: Sequence[float]) -> Part:
    """A condition without the controls that do not act in one step of a run, so that none of them computes:
    those whose window is closed, and those whose factors are all 0.

    A window is open as in diffusers: where no part of the step lies outside. The condition itself is
    returned where there is nothing to leave out.

    Args:
        cond: the condition of `ControlLDM.apply_model`.
        step: from 0 on, in the order in which they are taken.
        steps: of the run.
        scales: see `steering`.
    """

    def acts(part: Part) -> bool:
        start, end = part.get(WINDOW, (0.0, 1.0))
        own = scales if part.get("control_scales") is None else part["control_scales"]
        nothing = bool(own) and all(isinstance(scale, int | float) and scale == 0 for scale in own)
        return not (nothing or step / steps < start or (step + 1) / steps > end)

    further = [_without_window(part) for part in cond.get(FURTHER, ()) if acts(part)]
    if acts(cond):
        left = _without_window(cond)
    else:
        left = {**_without_window(cond), "c_concat": None}
        left.pop("hint_embedding", None)
    return {**left, FURTHER: further} if cond.get(FURTHER) else left


def _without_window(part: Part) -> Any:
    return {key: value for key, value in part.items() if key != WINDOW} if WINDOW in part else part


def steering(
    network: nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    context: torch.Tensor,
    cond: Part,
    scales: Sequence[float],
    shared: bool = False,
) -> list[torch.Tensor]:
    """The outputs of a control network, scaled, one for each skip connection and the middle block.

    Args:
        network: a `ControlNet`, or one of its form.
        x: noisy latents ``[B, 4, h, w]``.
        t: time steps ``[B]``.
        context: text embeddings ``[B, M, D]``.
        cond: the condition of `ControlLDM.apply_model`, or one of its further controls. Hints with fewer than
            B rows steer the first rows only; the others get zeros. ``control_region`` says where in the
            picture the control acts: weights in [0, 1], ``[1, 1, h, w]`` in latent pixels.
        scales: a factor for each output, where the condition has none of its own. More of them than outputs
            are fine: scripts set 13, also for smaller models. A factor may be ``[B, 1, 1, 1]``, one for each
            row.
        shared: both halves of guidance have the same latents and hints, so that the network, which knows of
            this, gets the latents once.

    Raises:
        ValueError: more hints than latents, fewer scales than outputs, or a ``control_window``, which only
            samplers know how to read.
    """
    if WINDOW in cond:
        raise ValueError(
            f"got a condition with {WINDOW} outside of a run; leave it out, or give the condition of one "
            "step: model.condition_at_step(cond, step, steps)"
        )
    hint = torch.cat(list(cond["c_concat"]), dim=1)  # [rows, 3, 8h, 8w]
    rows, unsteered = hint.shape[0], x.shape[0] - hint.shape[0]
    if unsteered < 0:
        raise ValueError(f"got {rows} hints for a batch of {x.shape[0]} latents; expected as many or fewer")
    embedding = {"hint_embedding": cond["hint_embedding"]} if "hint_embedding" in cond else {}
    latents = x[: rows // 2] if shared and not unsteered else x[:rows]
    steered = context if not unsteered else context[:rows]  # a slice would not be known as the same text
    outputs = list(network(x=latents, hint=hint, timesteps=t[:rows], context=steered, **embedding))
    scales = scales if cond.get("control_scales") is None else cond["control_scales"]
    if len(scales) < len(outputs):
        raise ValueError(f"got {len(scales)} control scales; expected {len(outputs)}, one for each output")
    outputs = [_scaled(output, scale) for output, scale in zip(outputs, scales, strict=False)]
    if cond.get(REGION) is not None:
        outputs = _within(cond[REGION], outputs, network, latents)
    return [_with_zeros(output, unsteered) for output in outputs] if unsteered else outputs


def _scaled(output: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """An output times its factor; with a factor for each row, what both halves share is repeated first."""
    return rows_like(output, scale) * scale.to(output.dtype) if torch.is_tensor(scale) else output * scale


def _within(
    region: torch.Tensor, outputs: Sequence[torch.Tensor], network: nn.Module, latents: torch.Tensor
) -> list[torch.Tensor]:
    """Outputs that fade where the region does. One that was averaged over the picture gets its places back:
    it holds for all of them."""
    if getattr(network, "global_average_pooling", False):
        sizes = _sizes(network, latents)
    else:
        sizes = [(output.shape[-2], output.shape[-1]) for output in outputs]
    weights = {size: nn.functional.interpolate(region.float(), size, mode="area") for size in set(sizes)}
    return [
        output * weights[size].to(output.dtype) for output, size in zip(outputs, sizes, strict=True)
    ]  # [B, C, H / 2^level, W / 2^level]


def _sizes(network: Any, latents: torch.Tensor) -> list[tuple[int, int]]:
    """Height and width of each output of a network before it is averaged."""
    (height, width), sizes = latents.shape[-2:], []
    for block in network.input_blocks:
        if any(isinstance(layer, Downsample) for layer in block):
            height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return [*sizes, sizes[-1]]


def _with_zeros(output: torch.Tensor, rows: int) -> torch.Tensor:
    """``output [B, ...]`` and ``rows`` rows of zeros, which steer nothing."""
    return torch.cat([output, output.new_zeros(rows, *output.shape[1:])])
