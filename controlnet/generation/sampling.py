"""Guided sampling of a ControlLDM: conditions from pictures and prompts, latents from noise.

Written once for the generator and the evaluation; the original has it in every ``gradio_*2image.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldm.cldm import ControlLDM, ControlNet
from controlnet.generation.request import Request
from controlnet.generation.samplers import DEFAULT_SAMPLER, SAMPLERS
from ldm.models.diffusion.guidance import interval_schedule
from ldm.models.diffusion.sampler import Sampler

GUESS_MODE_DECAY = 0.825
WHOLE_RUN = (0.0, 1.0)


def guided_conditions(
    model: ControlLDM,
    control: np.ndarray,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    scales: Sequence[float],
    guess_mode: bool = False,
    network: ControlNet | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both halves of classifier-free guidance.

    Args:
        model: on its device, its text encoder at hand.
        control: what the network sees, uint8 RGB ``[H, W, 3]`` for all samples or ``[N, H, W, 3]`` for each
            its own.
        prompts, negative_prompts: N texts each.
        scales: the factor of each output of the control copy, see `control_scales`.
        guess_mode: leave the control out of the unconditional half.
        network: steers instead of the model's own control.

    Returns:
        condition and unconditional condition: text ``[N, 77, D]``, hint ``[N, 3, H, W]`` in [0, 1].
    """
    text = model.get_learned_conditioning(list(prompts))
    negative = model.get_learned_conditioning(list(negative_prompts))
    pictures = torch.from_numpy(np.ascontiguousarray(control)).to(text.device)
    if pictures.ndim == 3:
        pictures = pictures[None].expand(len(prompts), -1, -1, -1)
    hint = (pictures.permute(0, 3, 1, 2).float() / 255.0).to(text.dtype).contiguous()  # [N, 3, H, W]
    steering: dict[str, Any] = {"control_scales": scales}
    if network is not None:
        steering["control_model"] = network
    cond = {"c_concat": [hint], "c_crossattn": [text], **steering}
    uncond = {"c_concat": None if guess_mode else [hint], "c_crossattn": [negative], **steering}
    return cond, uncond


def control_scales(strength: float, count: int, guess_mode: bool = False) -> list[float]:
    """The factor of each control output, first block first; guess mode trusts the last ones most."""
    if not guess_mode:
        return [strength] * count
    return [strength * GUESS_MODE_DECAY ** (count - 1 - i) for i in range(count)]


def sample_latents(
    model: ControlLDM,
    cond: Mapping[str, Any],
    uncond: Mapping[str, Any],
    *,
    steps: int,
    scale: float,
    generator: torch.Generator | Sequence[torch.Generator],
    eta: float = 0.0,
    sampler: str = DEFAULT_SAMPLER,
    guidance_interval: tuple[float, float] = WHOLE_RUN,
    on_step: Callable[[Sampler], Callable[[Tensor, int], None]] | None = None,
) -> Tensor:
    """Sample latents.

    Args:
        model: on its device.
        cond, uncond: of `guided_conditions`.
        steps, scale, eta: of the sampler and its guidance.
        generator: the source of all noise; one for each sample makes them independent of each other.
        sampler: a name in `SAMPLERS`.
        guidance_interval: the part of the run that is guided, see `interval_schedule`.
        on_step: given the sampler, returns its ``img_callback``.

    Returns:
        ``[N, 4, H/8, W/8]``.
    """
    count, _, height, width = cond["c_concat"][0].shape
    used: Any = SAMPLERS[sampler].make(model)  # samplers share a call, not its type
    guided_part = {}
    if guidance_interval != WHOLE_RUN:  # a sampler that somebody else wrote need not know schedules
        guided_part["ucg_schedule"] = interval_schedule(scale, used.step_count(steps), *guidance_interval)
    latents, _ = used.sample(
        steps,
        count,
        (4, height // 8, width // 8),
        cond,
        verbose=False,
        eta=eta,
        unconditional_guidance_scale=scale,
        unconditional_conditioning=uncond,
        generator=generator,
        img_callback=on_step and on_step(used),
        **guided_part,
    )
    return latents


def noise_generators(request: Request, device: torch.device) -> torch.Generator | list[torch.Generator]:
    """The source of a run's noise: the numbers of torch's global stream after seeding, but nobody else draws
    from it.

    With ``per_sample_seeds`` one for each picture, so that its noise does not depend on its neighbours.
    """
    generators = [torch.Generator(device).manual_seed(seed) for seed in request.seeds]
    return generators if request.per_sample_seeds else generators[0]


def to_uint8(pictures: Tensor) -> np.ndarray:
    """``[N, 3, H, W]`` in [-1, 1] -> uint8 RGB ``[N, H, W, 3]``, by truncation like the original."""
    values = pictures.float().permute(0, 2, 3, 1) * 127.5 + 127.5
    return values.clamp(0, 255).to(torch.uint8).cpu().numpy()
