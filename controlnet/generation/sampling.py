"""Guided sampling of a ControlLDM: conditions from pictures and prompts, latents from noise.

Written once for the generator and the evaluation; the original has it in every ``gradio_*2image.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from controlnet.generation.request import Request
from controlnet.generation.samplers import DEFAULT_SAMPLER, SAMPLERS
from controlnet.generation.words import encode_halves
from ldm.models.diffusion.guidance import (
    FURTHER,
    REGION,
    WINDOW,
    interval_schedule,
    knows_joined_conditions,
)
from ldm.models.diffusion.sampler import Sampler
from ldm.modules.diffusionmodules.util import noise_like
from ldm.modules.regional import REGIONAL, RegionalPrompts

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM, ControlNet

GUESS_MODE_DECAY = 0.825
WHOLE_RUN = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Control:
    """One control of a run.

    Args:
        picture: what the network sees, uint8 RGB ``[H, W, 3]`` for all samples or ``[N, H, W, 3]`` for each
            its own.
        scales: the factor of each output, see `control_scales`.
        unconditional: factor of it in the unconditional half of guidance; 0 leaves it out there.
        network: steers instead of the model's own control.
        window: the part of the run in which it acts, as shares of the steps.
        region: where in the picture it acts, uint8 ``[h, w]`` of any size, 255 for all of it.
    """

    picture: np.ndarray
    scales: Sequence[float]
    unconditional: float = 1.0
    network: ControlNet | None = None
    window: tuple[float, float] = WHOLE_RUN
    region: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Start:
    """Latents to begin from instead of noise alone.

    Args:
        latents: ``[N, 4, h, w]``, without noise.
        denoise: the share of the steps that is taken: they are made as noisy as its first step has it.
        keep: ``[N, 1, h, w]``, 1 where the latents are kept at every step; None keeps nothing for sure.
        from_noise: begin with noise alone, so that only what is kept knows the latents.
    """

    latents: Tensor
    denoise: float = 1.0
    keep: Tensor | None = None
    from_noise: bool = False

    def steps(self, total: int) -> int:
        """How many of ``total`` steps are taken, by the rule of diffusers' image to image."""
        return min(int(total * self.denoise), total)


def guided_conditions(
    model: ControlLDM,
    control: np.ndarray,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    scales: Sequence[float],
    network: ControlNet | None = None,
    *,
    unconditional: float = 1.0,
    window: tuple[float, float] = WHOLE_RUN,
    region: np.ndarray | None = None,
    further: Sequence[Control] = (),
    prompt_syntax: bool = False,
    regional: RegionalPrompts | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both halves of classifier-free guidance.

    Args:
        model: on its device, its text encoder at hand.
        control, scales, network, unconditional, window, region: the first control, see `Control`.
        prompts, negative_prompts: N texts each.
        further: what steers beside it.
        prompt_syntax: read weights and breaks in the prompts, see ``ldm.modules.encoders.prompt_syntax``.
        regional: prompts for parts of the picture, for the conditional half.

    Returns:
        condition and unconditional condition: text ``[N, 77, D]`` (both in as many chunks of 77 as the longer
        one needs, with ``prompt_syntax``), hint ``[N, 3, H, W]`` in [0, 1].

    Raises:
        ValueError: further controls or regional prompts for a model with an ``apply_model`` of its own, which
            would not see them; ``prompt_syntax`` for a text encoder of somebody's own.
    """
    text, negative = encode_halves(model, prompts, negative_prompts, prompt_syntax)
    first = Control(control, scales, unconditional, network, window, region)
    more = window != WHOLE_RUN or region is not None or further or regional is not None
    if more and not knows_joined_conditions(model):
        name = type(model).__name__
        raise ValueError(
            f"{name} has an apply_model of its own, which takes one control throughout: leave out "
            "further controls, windows, regions and prompts for parts, or mark it with "
            "takes_joined_conditions"
        )
    cond, uncond = _halves(first, text)
    cond["c_crossattn"], uncond["c_crossattn"] = [text], [negative]
    if regional is not None:
        cond[REGIONAL] = regional
    if further:
        cond[FURTHER], uncond[FURTHER] = map(
            list, zip(*(_halves(each, text) for each in further), strict=True)
        )
    return cond, uncond


def _halves(control: Control, text: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the condition and the unconditional condition say about a control; ``text [N, 77, D]`` has the
    number of samples, the device and the dtype.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(control.picture)).to(text.device)
    if pictures.ndim == 3:
        pictures = pictures[None].expand(len(text), -1, -1, -1)
    hint = (pictures.permute(0, 3, 1, 2).float() / 255.0).to(text.dtype).contiguous()  # [N, 3, H, W]
    steering: dict[str, Any] = {"control_scales": control.scales}
    if control.network is not None:
        steering["control_model"] = control.network
    if control.window != WHOLE_RUN:
        steering[WINDOW] = control.window
    if control.region is not None:
        mask = torch.tensor(control.region, device=text.device)
        size = (hint.shape[-2] // 8, hint.shape[-1] // 8)
        steering[REGION] = torch.nn.functional.interpolate(
            mask[None, None].float() / 255.0, size, mode="area"
        )
    halves = {"c_concat": [hint], **steering}, {"c_concat": [hint], **steering}
    if control.unconditional == 0:
        halves[1]["c_concat"] = None
    elif control.unconditional != 1:
        halves[1]["control_scales"] = [scale * control.unconditional for scale in control.scales]
    return halves


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
    start: Start | None = None,
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
        start: what to begin from; shares of the run are of the steps that are taken from there.

    Returns:
        ``[N, 4, H/8, W/8]``.
    """
    count, _, height, width = cond["c_concat"][0].shape
    used: Any = SAMPLERS[sampler].make(model)  # samplers share a call, not its type
    total = used.step_count(steps)
    taken = total if start is None else start.steps(total)
    given: dict[str, Any] = {
        "unconditional_guidance_scale": scale,
        "unconditional_conditioning": uncond,
        "verbose": False,
        "generator": generator,
        "img_callback": on_step and on_step(used),
    }
    if guidance_interval != WHOLE_RUN:  # a sampler that somebody else wrote need not know schedules
        given["ucg_schedule"] = interval_schedule(scale, taken, *guidance_interval)
    if start is not None and start.keep is not None:
        given |= {"mask": start.keep, "x0": start.latents}
    if start is None or start.from_noise:
        return used.sample(steps, count, (4, height // 8, width // 8), cond, eta=eta, **given)[0]
    used.make_schedule(steps, ddim_eta=eta, verbose=False)
    noise = noise_like(start.latents.shape, start.latents.device, generator=generator)
    places = torch.full((count,), taken - 1)
    return used.decode(used.stochastic_encode(start.latents, places, noise=noise), cond, taken, **given)


def noise_generators(
    request: Request, device: torch.device, second: bool = False
) -> torch.Generator | list[torch.Generator]:
    """The source of a run's noise: the numbers of torch's global stream after seeding, but nobody else draws
    from it. The ``second`` pass has other numbers than the first.

    With ``per_sample_seeds`` one for each picture, so that its noise does not depend on its neighbours.
    """
    seeds = [second_seed(seed) if second else seed for seed in request.seeds]
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    return generators if request.per_sample_seeds else generators[0]


def second_seed(seed: int) -> int:
    """The seed of the second pass, on every device the same."""
    return int(torch.randint(2**32, (), generator=torch.Generator().manual_seed(seed)))


def to_uint8(pictures: Tensor) -> np.ndarray:
    """``[N, 3, H, W]`` in [-1, 1] -> uint8 RGB ``[N, H, W, 3]``, by truncation like the original."""
    values = pictures.float().permute(0, 2, 3, 1) * 127.5 + 127.5
    return values.clamp(0, 255).to(torch.uint8).cpu().numpy()


def from_uint8(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 RGB ``[N, H, W, 3]`` -> float32 ``[N, 3, H, W]`` in [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2)
    return (values.float() / 127.5 - 1.0).contiguous()
