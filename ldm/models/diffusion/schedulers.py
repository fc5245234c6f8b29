"""Samplers beyond the original's: the schedulers of diffusers, behind the arguments of `DDIMSampler`.

diffusers is imported when the first of them is used. Which of its schedulers do well here, and with what
options: controlnet/generation/samplers.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm.models.diffusion.guidance import check_rows, guidance_scales
from ldm.models.diffusion.sampler import Generators, Sampler, refuse_unsupported
from ldm.modules.diffusionmodules.util import noise_like

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""diffusers' names for what a model predicts."""

LEAST_ALPHA = 2.0**-24
"""Stands for an alpha of 0, a last step of noise alone, which has no finite sigma; as in diffusers."""


class SchedulerSampler(Sampler):
    """Samples by a scheduler of diffusers that asks the model once for each step.

    Args:
        model: see `Sampler`.
        scheduler: the name of its class, such as "UniPCMultistepScheduler".
        options: its arguments, but for the noise and what is predicted, which are the model's.

    Attributes:
        ddim_timesteps: the time steps of the run, ascending, float64 ``[S]``; there from `make_scheduler` on.
    """

    def __init__(self, model: Any, scheduler: str, **options: Any):
        super().__init__(model)
        self.scheduler, self.options = scheduler, options

    def make_scheduler(self, steps: int) -> Any:
        """A fresh scheduler of ``steps`` steps for the model's noise; its numbers stay on the host.

        Raises:
            ValueError: more steps than the model has, or than the scheduler takes; no such scheduler.
        """
        if not 1 <= steps <= self.ddpm_num_timesteps:
            raise ValueError(
                f"got {steps} steps; expected 1 to {self.ddpm_num_timesteps}, the model's number"
            )
        import diffusers

        kind = getattr(diffusers, self.scheduler, None)
        if kind is None:
            raise ValueError(f"diffusers {diffusers.__version__} has no scheduler {self.scheduler!r}")
        alphas = self.model.alphas_cumprod.detach().cpu().double().numpy().clip(min=LEAST_ALPHA)
        scheduler = kind(
            num_train_timesteps=self.ddpm_num_timesteps,
            trained_betas=(1.0 - alphas / np.append(1.0, alphas[:-1])).tolist(),
            prediction_type=PREDICTIONS[self.model.parameterization],
            **self.options,
        )
        scheduler.set_timesteps(steps, device="cpu")
        if hasattr(scheduler, "set_begin_index"):  # steps are counted, for two may share a time step
            scheduler.set_begin_index(0)
        self.ddim_timesteps = scheduler.timesteps.double().numpy()[::-1]
        return scheduler

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "", ddim_eta: float = 0.0, verbose: bool = True
    ) -> Any:
        """See `make_scheduler`; ``ddim_eta`` must be 0, and the spacing is the scheduler's own."""
        self._refuse_eta(ddim_eta)
        self.verbose = verbose
        return self.make_scheduler(ddim_num_steps)

    def _refuse_eta(self, eta: float) -> None:
        if eta != 0:
            raise ValueError(f"got eta={eta}; it is DDIM's alone: with {self.scheduler} eta must be 0")

    def step_count(self, steps: int) -> int:
        """As many as are asked for."""
        return steps

    def _begun_at(self, place: int) -> tuple[Any, torch.Tensor]:
        """A fresh scheduler of as many steps as the one of `make_schedule`, that begins at a place of the
        ascending steps, and the time steps that are left, ``[place + 1]`` from the noisiest.
        """
        steps = len(self.ddim_timesteps)
        if not 0 <= place < steps:
            raise ValueError(f"got place {place}; expected 0 to {steps - 1}, those of the schedule")
        scheduler = self.make_scheduler(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(steps - 1 - place)
        return scheduler, scheduler.timesteps[steps - 1 - place :]

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        use_original_steps: bool = False,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Sampler.stochastic_encode`; ``t [B]`` is one place for all, on the host."""
        refuse_unsupported(use_original_steps=use_original_steps)
        scheduler, left = self._begun_at(int(t[0]))
        noise = torch.randn_like(x0) if noise is None else noise
        return scheduler.add_noise(x0, noise, left[:1].repeat(len(x0)))

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        eta: float = 0.0,
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        verbose: bool = True,
        x_T: torch.Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        ucg_schedule: Sequence[float] | None = None,
        generator: Generators = None,
        **unsupported: Any,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """Sample latents; see `DDIMSampler.sample`.

        Args:
            x_T: noise to start from, of variance 1 whatever the scheduler starts at.

        Raises:
            ValueError: the condition's batch is not B, or an argument has no meaning here, such as an eta.
        """
        refuse_unsupported(**unsupported)
        self._refuse_eta(eta)
        check_rows(conditioning, batch_size)
        check_rows(unconditional_conditioning, batch_size, "an unconditional condition")
        scheduler, device = self.make_scheduler(S), self.model.alphas_cumprod.device
        noise = noise_like((batch_size, *shape), device, generator=generator) if x_T is None else x_T
        self.verbose = verbose
        return self._run(
            scheduler,
            scheduler.timesteps,
            noise * float(scheduler.init_noise_sigma),
            conditioning,
            unconditional_conditioning,
            guidance_scales(unconditional_guidance_scale, ucg_schedule, S),
            callback=callback,
            img_callback=img_callback,
            mask=mask,
            x0=x0,
            log_every_t=log_every_t,
            generator=generator,
        )

    @torch.no_grad()
    def decode(
        self,
        x_latent: torch.Tensor,
        cond: Any,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        verbose: bool = True,
        ucg_schedule: Sequence[float] | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """Sample on from noisy latents ``[B, C, H, W]`` over the last ``t_start`` steps; see `sample`."""
        scheduler, left = self._begun_at(t_start - 1)
        self.verbose = verbose
        scales = guidance_scales(unconditional_guidance_scale, ucg_schedule, t_start)
        return self._run(scheduler, left, x_latent, cond, unconditional_conditioning, scales, **more)[0]

    def _run(
        self,
        scheduler: Any,
        visited: torch.Tensor,
        x: torch.Tensor,
        cond: Any,
        uncond: Any,
        scales: Sequence[float],
        callback: Callable[[int], Any] | None = None,
        img_callback: Callable[[torch.Tensor, int], Any] | None = None,
        mask: torch.Tensor | None = None,
        x0: torch.Tensor | None = None,
        log_every_t: int = 100,
        generator: Generators = None,
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """The loop of `sample` and `decode`, from latents as noisy as the first of the time steps has it."""
        if mask is not None and x0 is None:
            raise ValueError("a mask needs x0, the latents that it keeps")
        draw = given_to(scheduler.step, generator=generator)
        cond, uncond = self.prepared(cond), self.prepared(uncond)
        intermediates = {"x_inter": [x], "pred_x0": [x]}
        for i, step in enumerate(tqdm(visited, desc=self.scheduler, disable=not self.verbose)):
            if callback:
                callback(i)
            if mask is not None and x0 is not None:
                noise = noise_like(x0.shape, x.device, generator=generator)
                x = scheduler.add_noise(x0, noise, step.repeat(len(x0))) * mask + (1.0 - mask) * x
            t = torch.full((len(x),), as_number(step), device=x.device)
            halves = (self.at_step(half, i, len(visited)) for half in (cond, uncond))
            output = self.guided_output(scheduler.scale_model_input(x, step), t, *halves, scales[i])
            result = scheduler.step(output, step, x, **draw)
            x, pred_x0 = result.prev_sample, predicted_start(scheduler, result)
            if img_callback:
                img_callback(pred_x0, i)
            if (len(visited) - i - 1) % log_every_t == 0 or i == 0:
                intermediates["x_inter"].append(x)
                intermediates["pred_x0"].append(pred_x0)
        if mask is not None and x0 is not None:  # the last step may begin at much noise, from which x0 is
            x = x0 * mask + (1.0 - mask) * x  # not found again
        return x, intermediates


def as_number(step: torch.Tensor) -> int | float:
    """A time step of a scheduler, which may keep whole ones as floats; models look up constants by it."""
    value = step.item()
    return int(value) if value == int(value) else value


def given_to(function: Callable, generator: Generators) -> dict[str, Any]:
    """The source of noise as diffusers wants it, for a ``function`` that draws any."""
    if "generator" not in inspect.signature(function).parameters:
        return {}
    return {"generator": list(generator) if isinstance(generator, Sequence) else generator}


def predicted_start(scheduler: Any, result: Any) -> torch.Tensor:
    """x_0 as a step of a scheduler took it to be: named in its result, or kept for the steps that follow."""
    for name in ("pred_original_sample", "denoised"):
        if getattr(result, name, None) is not None:
            return getattr(result, name)
    return scheduler.model_outputs[-1]
