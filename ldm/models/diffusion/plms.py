"""The PLMS sampler: DDIM's steps with a better estimate of the noise, out of the last four.

Sources: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv 2202.09778, equations 12 and 13),
and ldm/models/diffusion/plms.py of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ldm.models.diffusion.guidance import check_rows, guidance_scales
from ldm.models.diffusion.sampler import Generators, Sampler, SamplingSchedule, refuse_unsupported
from ldm.modules.diffusionmodules.util import noise_like

ADAMS_BASHFORTH = ((3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the present noise and of those before it, the newest first, for one, two and three of them."""


class PLMSSampler(Sampler):
    """Samples by PLMS; see `Sampler` for its arguments."""

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> SamplingSchedule:
        """See `Sampler.make_schedule`; ``ddim_eta`` must be 0, since the steps are deterministic."""
        if ddim_eta != 0:
            raise ValueError(f"got eta={ddim_eta}; PLMS is deterministic: eta must be 0")
        return super().make_schedule(ddim_num_steps, ddim_discretize, ddim_eta, verbose)

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
        """Sample latents; see `DDIMSampler.sample`. The first step asks the model twice, each other one once.

        Raises:
            ValueError: the condition's batch is not B, or an argument has no meaning here, such as an eta.
        """
        refuse_unsupported(
            dynamic_threshold=dynamic_threshold, quantize_x0=quantize_x0, normals_sequence=normals_sequence
        )
        check_rows(conditioning, batch_size)
        check_rows(unconditional_conditioning, batch_size, "an unconditional condition")
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        return self.plms_sampling(
            conditioning,
            (batch_size, *shape),
            x_T=x_T,
            callback=callback,
            mask=mask,
            x0=x0,
            img_callback=img_callback,
            log_every_t=log_every_t,
            temperature=temperature,
            noise_dropout=noise_dropout,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            ucg_schedule=ucg_schedule,
            generator=generator,
        )

    @torch.no_grad()
    def plms_sampling(
        self,
        cond: Any,
        shape: Sequence[int],
        x_T: torch.Tensor | None = None,
        ddim_use_original_steps: bool = False,
        callback: Callable[[int], Any] | None = None,
        timesteps: int | None = None,
        quantize_denoised: bool = False,
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        log_every_t: int = 100,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        dynamic_threshold: Any = None,
        ucg_schedule: Sequence[float] | None = None,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """The loop of `sample`; see `DDIMSampler.ddim_sampling`."""
        refuse_unsupported(dynamic_threshold=dynamic_threshold, quantize_denoised=quantize_denoised)
        device = self.model.alphas_cumprod.device
        visited = self.steps_of(ddim_use_original_steps, timesteps)[::-1]
        steps = len(visited)
        scales = guidance_scales(unconditional_guidance_scale, ucg_schedule, steps)
        x = noise_like(shape, device, generator=generator) if x_T is None else x_T
        cond, uncond = self.prepared(cond), self.prepared(unconditional_conditioning)
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        old_eps: list[torch.Tensor] = []  # of up to three steps before, the newest last
        for i, step in enumerate(tqdm(visited, desc="PLMS Sampler", disable=not self.verbose)):
            index = steps - i - 1
            if callback:
                callback(i)
            t = torch.full((shape[0],), int(step), device=device, dtype=torch.long)
            t_next = torch.full_like(t, int(visited[min(i + 1, steps - 1)]))
            x, pred_x0, e_t = self.p_sample_plms(
                self.kept(x, t, mask, x0, generator),
                self.at_step(cond, i, steps),
                t,
                index=index,
                use_original_steps=ddim_use_original_steps,
                temperature=temperature,
                noise_dropout=noise_dropout,
                score_corrector=score_corrector,
                corrector_kwargs=corrector_kwargs,
                unconditional_guidance_scale=scales[i],
                unconditional_conditioning=self.at_step(uncond, i, steps),
                old_eps=old_eps,
                t_next=t_next,
            )
            old_eps = [*old_eps, e_t][-3:]
            if img_callback:
                img_callback(pred_x0, i)
            if index % log_every_t == 0 or i == 0:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        return x, intermediates

    @torch.no_grad()
    def decode(self, x_latent: torch.Tensor, cond: Any, t_start: int, **more: Any) -> torch.Tensor:
        """Sample on from noisy latents ``[B, C, H, W]`` over the first ``t_start`` steps of the schedule.

        Args:
            more: of `plms_sampling`.
        """
        self.verbose = more.pop("verbose", self.verbose)
        steps = len(self.schedule_of(use_original_steps=False))
        return self.plms_sampling(
            cond, x_latent.shape, x_T=x_latent, timesteps=None if t_start >= steps else t_start + 1, **more
        )[0]

    @torch.no_grad()
    def p_sample_plms(
        self,
        x: torch.Tensor,
        c: Any,
        t: torch.Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        quantize_denoised: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        old_eps: Sequence[torch.Tensor] = (),
        t_next: torch.Tensor | None = None,
        dynamic_threshold: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step: x_t ``[B, C, H, W]`` -> x_{t-1}, the predicted x_0, and the noise that the model
        predicts.

        Args:
            old_eps: the noise that it predicted in the steps before, the newest last.
            t_next: time steps ``[B]`` of x_{t-1}; needed in the first step.
            others: see `DDIMSampler.p_sample_ddim`.
        """
        refuse_unsupported(dynamic_threshold=dynamic_threshold, quantize_denoised=quantize_denoised)
        schedule = self.schedule_of(use_original_steps)
        alpha = schedule.alphas[index]

        def predict(x: torch.Tensor, t: torch.Tensor, alpha: float) -> torch.Tensor:
            output = self.guided_output(x, t, c, unconditional_conditioning, unconditional_guidance_scale)
            return self.predicted_noise(x, t, output, alpha, c, score_corrector, corrector_kwargs)

        def step(e: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            start = (x - (1.0 - alpha) ** 0.5 * e) / alpha**0.5
            return self.step_back(start, e, index, schedule, repeat_noise, temperature, noise_dropout), start

        e_t = predict(x, t, alpha)
        if old_eps:
            recent = [e_t, *reversed(old_eps[-3:])]
            weights = ADAMS_BASHFORTH[len(recent) - 2]
            e_prime = sum(weight * e for weight, e in zip(weights, recent, strict=True))
        else:  # improved Euler: the mean of the noise here and where it leads
            e_prime = (e_t + predict(step(e_t)[0], t_next, schedule.alphas_prev[index])) / 2
        return *step(e_prime), e_t
