"""The DDIM sampler.

Sources: DDIM (arXiv 2010.02502), classifier-free guidance (2207.12598), SDEdit (2108.01073) for
`stochastic_encode`, and cldm/ddim_hacked.py of the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ldm.models.diffusion.guidance import check_rows, guidance_scales
from ldm.models.diffusion.sampler import Generators, Sampler, refuse_unsupported
from ldm.modules.diffusionmodules.util import noise_like


class DDIMSampler(Sampler):
    """Samples by DDIM; see `Sampler` for its arguments."""

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
        refuse_unsupported(
            dynamic_threshold=dynamic_threshold, quantize_x0=quantize_x0, normals_sequence=normals_sequence
        )
        check_rows(conditioning, batch_size)
        check_rows(unconditional_conditioning, batch_size, "an unconditional condition")
        self.make_schedule(S, ddim_eta=eta, verbose=verbose)
        return self.ddim_sampling(
            conditioning,
            (batch_size, *shape),
            callback=callback,
            img_callback=img_callback,
            mask=mask,
            x0=x0,
            temperature=temperature,
            noise_dropout=noise_dropout,
            score_corrector=score_corrector,
            corrector_kwargs=corrector_kwargs,
            x_T=x_T,
            log_every_t=log_every_t,
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
            ucg_schedule=ucg_schedule,
            **_if_given(generator),
        )

    @torch.no_grad()
    def ddim_sampling(
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
        """The loop of `sample`, over the schedule of `make_schedule`; arguments as there.

        Args:
            shape: (B, C, H, W).
            ddim_use_original_steps: visit every time step of the model instead.
            timesteps: not all of them; see `Sampler.steps_of`.
        """
        refuse_unsupported(dynamic_threshold=dynamic_threshold, quantize_denoised=quantize_denoised)
        device = self.model.alphas_cumprod.device
        visited = self.steps_of(ddim_use_original_steps, timesteps)
        steps = len(visited)
        scales = guidance_scales(unconditional_guidance_scale, ucg_schedule, steps)
        x = noise_like(shape, device, generator=generator) if x_T is None else x_T
        cond, uncond = self.prepared(cond), self.prepared(unconditional_conditioning)
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i, step in enumerate(tqdm(visited[::-1], desc="DDIM Sampler", disable=not self.verbose)):
            index = steps - i - 1
            if callback:
                callback(i)
            t = torch.full((shape[0],), int(step), device=device, dtype=torch.long)
            x, pred_x0 = self.p_sample_ddim(
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
                **_if_given(generator),
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
        use_original_steps: bool = False,
        quantize_denoised: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        dynamic_threshold: Any = None,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step (DDIM, equation 12): x_t ``[B, C, H, W]`` -> x_{t-1} and the predicted x_0.

        Args:
            index: place of ``t`` in the schedule of `make_schedule`, or with ``use_original_steps`` in that
                of every time step.
            others: see `sample`.
        """
        refuse_unsupported(dynamic_threshold=dynamic_threshold, quantize_denoised=quantize_denoised)
        schedule = self.schedule_of(use_original_steps)
        alpha = schedule.alphas[index]
        output = self.guided_output(x, t, c, unconditional_conditioning, unconditional_guidance_scale)
        e_t = self.predicted_noise(x, t, output, alpha, c, score_corrector, corrector_kwargs)
        pred_x0 = self.predicted_start(x, t, output, e_t, alpha)
        x_prev = self.step_back(
            pred_x0, e_t, index, schedule, repeat_noise, temperature, noise_dropout, generator
        )
        return x_prev, pred_x0

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
        schedule = self.schedule_of(use_original_steps)
        if not 1 <= t_enc <= len(schedule):
            raise ValueError(f"got t_enc={t_enc}; expected 1 to {len(schedule)}, the steps of the schedule")
        cond, uncond = self.prepared(c), self.prepared(unconditional_conditioning)
        x, kept, kept_steps = x0, [], []
        for i in tqdm(range(t_enc), desc="Encoding Image", disable=not verbose):
            t = torch.full((x0.shape[0],), int(schedule.timesteps[i]), device=x0.device, dtype=torch.long)
            alpha, alpha_next = schedule.alphas_prev[i], schedule.alphas[i]
            place = t_enc - i - 1  # decoding visits the same steps from the other end
            halves = (self.at_step(half, place, t_enc) for half in (cond, uncond))
            output = self.guided_output(x, t, *halves, unconditional_guidance_scale)
            e_t = self.predicted_noise(x, t, output, alpha)
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
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        ucg_schedule: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Sample on from noisy latents ``[B, C, H, W]`` over the first ``t_start`` steps of the schedule.

        Args:
            callback: called with the number of each step after it.
            ucg_schedule: a guidance scale for each of the steps that are taken.
            others: see `sample`.
        """
        cond, uncond = self.prepared(cond), self.prepared(unconditional_conditioning)
        visited = self.schedule_of(use_original_steps).timesteps[:t_start]
        scales = guidance_scales(unconditional_guidance_scale, ucg_schedule, len(visited))
        x = x_latent
        for i, step in enumerate(tqdm(visited[::-1], desc="Decoding image", disable=not verbose)):
            t = torch.full((len(x),), int(step), device=x.device, dtype=torch.long)
            x, pred_x0 = self.p_sample_ddim(
                self.kept(x, t, mask, x0, generator),
                self.at_step(cond, i, len(visited)),
                t,
                index=len(visited) - i - 1,
                use_original_steps=use_original_steps,
                unconditional_guidance_scale=scales[i],
                unconditional_conditioning=self.at_step(uncond, i, len(visited)),
                **_if_given(generator),
            )
            if img_callback:
                img_callback(pred_x0, i)
            if callback:
                callback(i)
        return x


def _if_given(generator: Generators) -> dict[str, Generators]:
    """The argument ``generator``, for methods that a subclass may have from the original, which had none."""
    return {} if generator is None else {"generator": generator}
