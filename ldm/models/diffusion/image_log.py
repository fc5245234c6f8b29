"""Pictures for the training log: reconstructions, samples, and the rows between noise and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from ldm.util import log_txt_as_img


def condition_size(cond: Any) -> tuple[int, int] | None:
    """Height and width of the latent that a condition with a hint belongs to, or None where there is no
    hint.
    """
    if not isinstance(cond, Mapping) or cond.get("c_concat") is None:
        return None
    height, width = cond["c_concat"][0].shape[-2:]
    return height // 8, width // 8


def picture_rows(steps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pictures over time, T times ``[B, 3, H, W]`` -> one sheet ``[1, 3, B H, T W]`` with a row for each
    sample.
    """
    stack = torch.stack(list(steps))  # [T, B, 3, H, W]
    return stack.permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2)[None]


@torch.no_grad()
def log_latent_images(
    model: Any,
    latent: torch.Tensor,
    cond: Any,
    captions: Sequence[str],
    ddim_steps: int,
    ddim_eta: float,
    diffusion_rows: int,
    sample: bool,
    plot_denoise_rows: bool,
    guidance_scale: float,
    use_ema_scope: bool,
) -> dict[str, torch.Tensor]:
    """What `LatentDiffusion.log_images` and `ControlLDM.log_images` have in common.

    Args:
        model: a `LatentDiffusion`.
        latent: scaled latents ``[B, 4, h, w]``.
        cond: condition of the batch.
        captions: B prompts.
        diffusion_rows: number of samples to show on their way to noise.
        guidance_scale: above 1, samples with guidance are made.

    Returns:
        float ``[B, 3, H, W]`` in [-1, 1] by name: reconstruction, conditioning, diffusion_row, samples,
        denoise_row, samples_cfg_scale_9.00.
    """
    rows = len(latent)
    log = {"reconstruction": model.decode_first_stage(latent)}
    if captions:
        height, width = log["reconstruction"].shape[-2:]
        log["conditioning"] = log_txt_as_img((width, height), list(captions), size=max(8, height // 25))
    if diffusion_rows:
        shown = latent[:diffusion_rows]
        times = [
            t
            for t in range(model.num_timesteps)
            if t % model.log_every_t == 0 or t == model.num_timesteps - 1
        ]
        noisy = [model.q_sample(shown, torch.full((len(shown),), t, device=shown.device)) for t in times]
        log["diffusion_row"] = picture_rows([model.decode_first_stage(z) for z in noisy])

    def run(**guidance: Any) -> tuple[torch.Tensor, Any]:
        with model.ema_scope("log_images") if use_ema_scope else nullcontext():
            return model.sample_log(
                cond, rows, ddim=True, ddim_steps=ddim_steps, eta=ddim_eta, size=latent.shape[-2:], **guidance
            )

    if sample:
        samples, intermediates = run()
        log["samples"] = model.decode_first_stage(samples)
        if plot_denoise_rows:
            log["denoise_row"] = picture_rows([model.decode_first_stage(z) for z in intermediates["pred_x0"]])
    if guidance_scale > 1.0:
        samples, _ = run(
            unconditional_guidance_scale=guidance_scale,
            unconditional_conditioning=model.unconditional_like(cond),
        )
        log[f"samples_cfg_scale_{guidance_scale:.2f}"] = model.decode_first_stage(samples)
    return log
