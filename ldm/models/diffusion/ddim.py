"""The DDIM sampler.

Sources: DDIM (arXiv 2010.02502), classifier-free guidance (2207.12598), SDEdit (2108.01073) for
`stochastic_encode`, and cldm/ddim_hacked.py of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm.models.diffusion.conditions import check_rows, join_conditions
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps, noise_like

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class DDIMSchedule:
    """Time steps in ascending order and what DDIM needs at each, as numbers on the host: float64 ``[S]``."""

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


class DDIMSampler:
    """Samples from a diffusion model in few steps.

    Args:
        model: a `LatentDiffusion` or anything with ``apply_model(x, t, cond)``, ``alphas_cumprod``,
            ``num_timesteps`` and ``parameterization``.
        schedule: kept from the original, which never used it.
    """

    def __init__(self, model: Any, schedule: str = "linear", **kwargs):
        self.model = model
        self.ddpm_num_timesteps = model.num_timesteps
        self.schedule = schedule

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> DDIMSchedule:
        """Choose the time steps; also kept as ``ddim_timesteps``, ``ddim_alphas`` ... for `decode` and for
        scripts.
        """
        timesteps = make_ddim_timesteps(
            ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps, verbose=verbose
        )
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
            self.model.alphas_cumprod, timesteps, ddim_eta, verbose=verbose
        )
        schedule = DDIMSchedule(timesteps, alphas, alphas_prev, sigmas)
        self.ddim_schedule = schedule
        self.ddim_timesteps = timesteps
        self.ddim_alphas, self.ddim_alphas_prev, self.ddim_sigmas = alphas, alphas_prev, sigmas
        self.ddim_sqrt_one_minus_alphas = np.sqrt(1.0 - alphas)
        return schedule

    def original_schedule(self, eta: float = 0.0) -> DDIMSchedule:
        """Every time step of the model."""
        timesteps = np.arange(self.ddpm_num_timesteps)
        alphas = self.model.alphas_cumprod.detach().cpu().double().numpy()
        alphas_prev = np.append(1.0, alphas[:-1])
        sigmas = eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
        return DDIMSchedule(timesteps, alphas, alphas_prev, sigmas)

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        callback: Callable[[int], Any] | None = None,
        normals_sequence: Any = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        verbose: bool = True,
        x_T: torch.Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        dynamic_threshold: Any = None,
        ucg_schedule: Sequence[float] | None = None,
        generator: Generators = None,
        **kwargs,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """Sample latents.

        Args:
            S: number of steps, 1 to the model's number of time steps (see `make_ddim_timesteps`).
            batch_size: B.
            shape: (C, H, W) of a sample.
            conditioning: for ``model.apply_model``: a tensor, or a dictionary with ``c_concat`` and
                ``c_crossattn``.
            callback: called with the number of each step before it; may raise to stop the run.
            img_callback: called with the predicted x_0 and the number of each step after it; may raise as
                well.
            eta: 0 for deterministic steps, 1 for DDPM's noise.
            mask: ``[B, 1 or C, H, W]`` in [0, 1]; where it is 1, ``x0 [B, C, H, W]`` is kept (inpainting).
            temperature: factor on the noise of each step.
            noise_dropout: dropout rate of that noise.
            score_corrector: its ``modify_score(model, e_t, x, t, c, **corrector_kwargs)`` changes the
                predicted noise.
            verbose: show a progress bar.
            x_T: noise to start from ``[B, C, H, W]``; drawn where it is not given.
            log_every_t: steps between the intermediate results that are kept.
            unconditional_guidance_scale: 1 is no guidance.
            unconditional_conditioning: like ``conditioning``; ``c_concat`` None means no control (guess
                mode).
            ucg_schedule: a guidance scale for each step instead.
            generator: source of all noise: one for the batch, or one for each sample; None is torch's global
                stream.
            normals_sequence, quantize_x0, dynamic_threshold: kept from the original, without effect there;
                they must keep their defaults.

        Returns:
            latents float32 ``[B, C, H, W]``, and a dictionary of lists: ``x_inter``, ``pred_x0``.

        Raises:
            ValueError: the condition's batch is not B, or an argument has no meaning here.
        """
        if dynamic_threshold is not None or quantize_x0 or normals_sequence is not None:
            raise ValueError(
                "dynamic_threshold, quantize_x0 and normals_sequence are not supported; leave them out"
            )
        check_rows(conditioning, batch_size)
        check_rows(unconditional_conditioning, batch_size, "an unconditional condition")
        schedule = self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        return self.ddim_sampling(
            conditioning,
            (batch_size, *shape),
            schedule=schedule,
            callback=callback,
            img_callback=img_callback,
            mask=mask,
            x0=x0,
            temperature=temperature,
            noise_dropout=noise_dropout,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
            verbose=verbose,
            x_T=x_T,
            log_every_t=log_every_t,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            ucg_schedule=ucg_schedule,
            generator=generator,
        )

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Any,
        shape: Sequence[int],
        schedule: DDIMSchedule,
        x_T: torch.Tensor | None = None,
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        ucg_schedule: Sequence[float] | None = None,
        generator: Generators = None,
        verbose: bool = True,
        **step_options: Any,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """The loop of `sample`, over a given schedule; arguments as there."""
        device = self.model.alphas_cumprod.device
        steps = len(schedule)
        if ucg_schedule is not None and len(ucg_schedule) != steps:
            raise ValueError(
                f"got {len(ucg_schedule)} values in ucg_schedule; expected {steps}, one for each step"
            )
        if mask is not None and x0 is None:
            raise ValueError("a mask needs x0, the latents that it keeps")
        x = noise_like(shape, device, generator=generator) if x_T is None else x_T
        cond, uncond = self._prepare(cond), self._prepare(unconditional_conditioning)
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i, step in enumerate(tqdm(schedule.timesteps[::-1], desc="DDIM Sampler", disable=not verbose)):
            index = steps - i - 1
            if callback:
                callback(i)
            t = torch.full((shape[0],), int(step), device=device, dtype=torch.long)
            if mask is not None:
                kept = self.model.q_sample(x0, t, noise_like(x0.shape, device, generator=generator))
                x = kept * mask + (1.0 - mask) * x
            x, pred_x0 = self.p_sample_ddim(
                x,
                cond,
                t,
                index,
                unconditional_guidance_scale=ucg_schedule[i]
                if ucg_schedule
                else unconditional_guidance_scale,
                unconditional_conditioning=uncond,
                schedule=schedule,
                generator=generator,
                **step_options,
            )
            if img_callback:
                img_callback(pred_x0, i)
            if index % log_every_t == 0 or i == 0:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    @torch.no_grad()
    def p_sample_ddim(
        self,
        x: torch.Tensor,
        c: Any,
        t: torch.Tensor,
        index: int,
        repeat_noise: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        schedule: DDIMSchedule | None = None,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step (DDIM, equation 12): x_t ``[B, C, H, W]`` -> x_{t-1} and the predicted x_0.

        Args:
            index: place of ``t`` in the schedule, by default that of `make_schedule`.
            others: see `sample`.
        """
        schedule = schedule or self.ddim_schedule
        alpha, alpha_prev, sigma = schedule.alphas[index], schedule.alphas_prev[index], schedule.sigmas[index]
        output = self.guided_output(x, t, c, unconditional_conditioning, unconditional_guidance_scale)
        e_t = self._noise_of(output, x, t, alpha)
        if score_corrector is not None:
            if self.model.parameterization != "eps":
                raise ValueError(
                    f"a score_corrector needs an eps model; this one predicts {self.model.parameterization}"
                )
            e_t = score_corrector.modify_score(self.model, e_t, x, t, c, **(corrector_kwargs or {}))
        if self.model.parameterization == "x0":
            pred_x0 = output
        elif self.model.parameterization == "v":
            pred_x0 = self.model.predict_start_from_z_and_v(x, t, output)
        else:
            pred_x0 = (x - (1.0 - alpha) ** 0.5 * e_t) / alpha**0.5
        direction = max(1.0 - alpha_prev - sigma**2, 0.0) ** 0.5 * e_t
        # Drawn also where sigma is 0: the seeds of the original depend on it.
        noise = sigma * noise_like(x.shape, x.device, repeat_noise, generator) * temperature
        if noise_dropout > 0.0:
            noise = torch.nn.functional.dropout(noise, p=noise_dropout)
        return alpha_prev**0.5 * pred_x0 + direction + noise, pred_x0

    def guided_output(
        self, x: torch.Tensor, t: torch.Tensor, cond: Any, uncond: Any = None, scale: float = 1.0
    ) -> torch.Tensor:
        """The model's output with classifier-free guidance, ``[B, C, H, W]``.

        Both conditions go through the networks as one batch of 2B wherever they fit together.
        """
        if uncond is None or scale == 1.0:
            return self.model.apply_model(x, t, cond)
        joined = join_conditions(cond, uncond)
        if joined is None:
            with_cond, without = self.model.apply_model(x, t, cond), self.model.apply_model(x, t, uncond)
        else:
            with_cond, without = self.model.apply_model(torch.cat([x, x]), torch.cat([t, t]), joined).chunk(2)
        return without + scale * (with_cond - without)

    @torch.no_grad()
    def encode(
        self,
        x0: torch.Tensor,
        c: Any,
        t_enc: int,
        use_original_steps: bool = False,
        return_intermediates: int | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        callback: Callable[[int], Any] | None = None,
        verbose: bool = True,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """DDIM inversion: latents ``[B, C, H, W]`` -> the noise that they are sampled from, after ``t_enc``
        steps.

        Needs `make_schedule`, unless ``use_original_steps``.

        Args:
            return_intermediates: about how many results on the way to keep.
        """
        schedule = self.original_schedule() if use_original_steps else self.ddim_schedule
        if not 1 <= t_enc <= len(schedule):
            raise ValueError(f"got t_enc={t_enc}; expected 1 to {len(schedule)}, the steps of the schedule")
        cond, uncond = self._prepare(c), self._prepare(unconditional_conditioning)
        x, kept, kept_steps = x0, [], []
        for i in tqdm(range(t_enc), desc="Encoding Image", disable=not verbose):
            t = torch.full((x0.shape[0],), int(schedule.timesteps[i]), device=x0.device, dtype=torch.long)
            alpha, alpha_next = schedule.alphas_prev[i], schedule.alphas[i]
            output = self.guided_output(x, t, cond, uncond, unconditional_guidance_scale)
            e_t = self._noise_of(output, x, t, alpha)
            scaled_noise = alpha_next**0.5 * ((1 / alpha_next - 1) ** 0.5 - (1 / alpha - 1) ** 0.5) * e_t
            x = (alpha_next / alpha) ** 0.5 * x + scaled_noise
            if return_intermediates and (i % max(1, t_enc // return_intermediates) == 0 or i >= t_enc - 2):
                kept.append(x)
                kept_steps.append(i)
            if callback:
                callback(i)
        out: dict[str, Any] = {"x_encoded": x, "intermediate_steps": kept_steps}
        if return_intermediates:
            out["intermediates"] = kept
        return x, out

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        use_original_steps: bool = False,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noisy latents at place ``t [B]`` of the schedule, to be continued by `decode` (image to image)."""
        schedule = self.original_schedule() if use_original_steps else self.ddim_schedule
        alphas = torch.as_tensor(schedule.alphas, dtype=x0.dtype, device=x0.device)[t].view(
            -1, *(1,) * (x0.ndim - 1)
        )
        noise = torch.randn_like(x0) if noise is None else noise
        return alphas.sqrt() * x0 + (1.0 - alphas).sqrt() * noise

    @torch.no_grad()
    def decode(
        self,
        x_latent: torch.Tensor,
        cond: Any,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        use_original_steps: bool = False,
        callback: Callable[[int], Any] | None = None,
        verbose: bool = True,
        generator: Generators = None,
    ) -> torch.Tensor:
        """Sample on from noisy latents ``[B, C, H, W]`` over the first ``t_start`` steps of the schedule."""
        full = self.original_schedule() if use_original_steps else self.ddim_schedule
        schedule = DDIMSchedule(
            full.timesteps[:t_start], full.alphas[:t_start], full.alphas_prev[:t_start], full.sigmas[:t_start]
        )
        x, _ = self.ddim_sampling(
            cond,
            x_latent.shape,
            schedule,
            x_T=x_latent,
            callback=callback,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            generator=generator,
            verbose=verbose,
        )
        return x

    def _prepare(self, cond: Any) -> Any:
        """Let the model compute what stays the same over all steps, if it knows how."""
        prepare = getattr(self.model, "prepare_condition", None)
        return cond if prepare is None or cond is None else prepare(cond)

    def _noise_of(self, output: torch.Tensor, x: torch.Tensor, t: torch.Tensor, alpha: float) -> torch.Tensor:
        """The predicted noise, whatever the model predicts."""
        if self.model.parameterization == "v":
            return self.model.predict_eps_from_z_and_v(x, t, output)
        if self.model.parameterization == "x0":
            return (x - alpha**0.5 * output) / max(1.0 - alpha, 1e-8) ** 0.5
        return output
