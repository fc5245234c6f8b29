"""DDPM's own sampler, which takes every time step (arXiv 2006.11239, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

if TYPE_CHECKING:
    from ldm.models.diffusion.ddpm import DDPM


@torch.no_grad()
def ancestral_step(
    model: DDPM, x: torch.Tensor, t: torch.Tensor, cond: Any = None, clip_denoised: bool = False
) -> torch.Tensor:
    """x_t -> x_{t-1}, both ``[B, C, H, W]``, at time steps ``[B]``.

    Args:
        clip_denoised: clamp the predicted x_0 to [-1, 1].
    """
    x_start = model.predict_start(x, t, model.apply_model(x, t, cond))
    if clip_denoised:
        x_start = x_start.clamp(-1.0, 1.0)
    mean, _, log_variance = model.q_posterior(x_start, x, t)
    noise = torch.randn_like(x)
    not_last = (t > 0).float().reshape(-1, *(1,) * (x.ndim - 1))
    return mean + not_last * (0.5 * log_variance).exp() * noise


@torch.no_grad()
def ancestral_sampling(
    model: DDPM,
    shape: Sequence[int],
    cond: Any = None,
    x_T: torch.Tensor | None = None,
    verbose: bool = True,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Samples of ``shape`` from noise, and the results after each ``model.log_every_t`` steps."""
    x = torch.randn(*shape, device=model.device) if x_T is None else x_T
    intermediates = [x]
    steps = reversed(range(model.num_timesteps))
    for i in tqdm(steps, "Sampling t", model.num_timesteps, disable=not verbose):
        t = torch.full((shape[0],), i, device=model.device, dtype=torch.long)
        x = model.p_sample(x, t, cond, clip_denoised=model.clip_denoised)
        if i % model.log_every_t == 0:
            intermediates.append(x)
    return x, intermediates
