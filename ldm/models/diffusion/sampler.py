"""What the samplers have in common: the time steps that they visit, and what they need at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ldm.models.diffusion.guidance import guided_output, knows_joined_conditions
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps, noise_like

MODEL_CONSTANTS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)
"""What samplers of the original hold of their model's schedule, under the same names."""

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True, eq=False)
class SamplingSchedule:
    """Time steps in ascending order and what DDIM needs at each, as numbers on the host: float64 ``[S]``."""

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


class Sampler:
    """Samples from a diffusion model in few steps.

    Args:
        model: a `LatentDiffusion` or anything with ``apply_model(x, t, cond)``, ``alphas_cumprod``,
            ``num_timesteps`` and ``parameterization``.
        schedule: kept from the original, which never used it.

    Attributes:
        ddim_timesteps, ddim_alphas, ddim_alphas_prev, ddim_sigmas, ddim_sqrt_one_minus_alphas: the schedule
            that `make_schedule` chose, float64 ``[S]``; the names are the original's.
        betas, alphas_cumprod ...: see `MODEL_CONSTANTS`; float32 ``[T]``, there after `make_schedule`.
    """

    def __init__(self, model: Any, schedule: str = "linear", **kwargs):
        self.model = model
        self.ddpm_num_timesteps = model.num_timesteps
        self.schedule = schedule
        self.verbose = True
        self._eta = 0.0
        self._every_step: SamplingSchedule | None = None

    def sample(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """Sample latents, each sampler in its way; see `DDIMSampler.sample`."""
        raise NotImplementedError

    def register_buffer(self, name: str, attr: Any) -> None:
        """Keep a value under a name; tensors go to the model's device."""
        setattr(self, name, attr.to(self.model.alphas_cumprod.device) if torch.is_tensor(attr) else attr)

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> SamplingSchedule:
        """Choose the time steps, and keep what is needed at each.

        Args:
            ddim_num_steps, ddim_discretize: see `make_ddim_timesteps`.
            ddim_eta: 0 for deterministic steps, 1 for DDPM's noise.
            verbose: name the steps in the log, and show progress bars.
        """
        self.verbose, self._eta, self._every_step = verbose, ddim_eta, None
        timesteps = make_ddim_timesteps(ddim_discretize, ddim_num_steps, self.ddpm_num_timesteps, verbose)
        sigmas, alphas, alphas_prev = make_ddim_sampling_parameters(
            self.model.alphas_cumprod, timesteps, ddim_eta, verbose
        )
        self.ddim_timesteps = timesteps
        self.register_buffer("ddim_alphas", alphas)
        self.register_buffer("ddim_alphas_prev", alphas_prev)
        self.register_buffer("ddim_sigmas", sigmas)
        self.register_buffer("ddim_sqrt_one_minus_alphas", np.sqrt(1.0 - alphas))
        sigmas = torch.tensor(self.schedule_of(use_original_steps=True).sigmas, dtype=torch.float32)
        self.register_buffer("ddim_sigmas_for_original_num_steps", sigmas)
        for name in MODEL_CONSTANTS:
            if hasattr(self.model, name):
                self.register_buffer(name, getattr(self.model, name).detach())
        return self.schedule_of(use_original_steps=False)

    def step_count(self, steps: int) -> int:
        """How many steps a run visits that is asked for ``steps``: the original's spacing makes 31 of 30."""
        return len(make_ddim_timesteps("uniform", steps, self.ddpm_num_timesteps, verbose=False))

    def schedule_of(self, use_original_steps: bool) -> SamplingSchedule:
        """The schedule of `make_schedule`, or the one that visits each of the model's time steps."""
        if not use_original_steps:
            return SamplingSchedule(
                self.ddim_timesteps, self.ddim_alphas, self.ddim_alphas_prev, self.ddim_sigmas
            )
        if self._every_step is None:
            alphas = self.model.alphas_cumprod.detach().cpu().double().numpy()
            alphas_prev = np.append(1.0, alphas[:-1])
            sigmas = self._eta * np.sqrt((1 - alphas_prev) / (1 - alphas) * (1 - alphas / alphas_prev))
            self._every_step = SamplingSchedule(np.arange(len(alphas)), alphas, alphas_prev, sigmas)
        return self._every_step

    def steps_of(self, use_original_steps: bool, timesteps: int | None) -> np.ndarray:
        """The time steps of a run, ascending.

        Args:
            timesteps: None for all. As in the original: the first ``timesteps`` of the model's own steps, or
                the first ``timesteps - 1`` of the chosen ones.
        """
        steps = self.schedule_of(use_original_steps).timesteps
        if timesteps is None:
            return steps
        return steps[:timesteps] if use_original_steps else steps[: min(timesteps, len(steps)) - 1]

    # ---- from a picture

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        use_original_steps: bool = False,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noisy latents at place ``t [B]`` of the schedule, to be continued by `decode` (image to image).

        Needs `make_schedule`. ``decode(..., t_start=n)`` takes up at place ``n - 1``.
        """
        schedule = self.schedule_of(use_original_steps)
        alphas = torch.as_tensor(schedule.alphas, dtype=x0.dtype, device=x0.device)[t].view(
            -1, *(1,) * (x0.ndim - 1)
        )
        noise = torch.randn_like(x0) if noise is None else noise
        return alphas.sqrt() * x0 + (1.0 - alphas).sqrt() * noise

    def decode(self, x_latent: torch.Tensor, cond: Any, t_start: int, **more: Any) -> torch.Tensor:
        """Sample on from noisy latents, each sampler in its way; see `DDIMSampler.decode`."""
        raise NotImplementedError

    def kept(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        mask: torch.Tensor | None,
        x0: torch.Tensor | None,
        generator: Generators,
    ) -> torch.Tensor:
        """``x`` with what a mask keeps of ``x0``, as noisy as time steps ``t [B]`` have it.

        Raises:
            ValueError: a mask without ``x0``.
        """
        if mask is None:
            return x
        if x0 is None:
            raise ValueError("a mask needs x0, the latents that it keeps")
        kept = self.model.q_sample(x0, t, noise_like(x0.shape, x.device, generator=generator))
        return kept * mask + (1.0 - mask) * x

    # ---- one step

    def guided_output(
        self, x: torch.Tensor, t: torch.Tensor, cond: Any, uncond: Any = None, scale: float = 1.0
    ) -> torch.Tensor:
        """The model's output with classifier-free guidance; see `guidance.guided_output`."""
        return guided_output(self.model, x, t, cond, uncond, scale)

    def predicted_noise(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        output: torch.Tensor,
        alpha: float,
        c: Any = None,
        score_corrector: Any = None,
        corrector_kwargs: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """The noise in ``x``, whatever the model predicts, as a corrector changes it."""
        kind = self.model.parameterization
        if score_corrector is not None:
            if kind != "eps":
                raise ValueError(f"a score_corrector needs an eps model; this one predicts {kind}")
            return score_corrector.modify_score(self.model, output, x, t, c, **(corrector_kwargs or {}))
        if kind == "v":
            return self.model.predict_eps_from_z_and_v(x, t, output)
        if kind == "x0":
            return (x - alpha**0.5 * output) / max(1.0 - alpha, 1e-8) ** 0.5
        return output

    def predicted_start(
        self, x: torch.Tensor, t: torch.Tensor, output: torch.Tensor, noise: torch.Tensor, alpha: float
    ) -> torch.Tensor:
        """x_0, from the model's output and the noise that `predicted_noise` made of it."""
        if self.model.parameterization == "x0":
            return output
        if self.model.parameterization == "v":
            return self.model.predict_start_from_z_and_v(x, t, output)
        return (x - (1.0 - alpha) ** 0.5 * noise) / alpha**0.5

    def step_back(
        self,
        pred_x0: torch.Tensor,
        e_t: torch.Tensor,
        index: int,
        schedule: SamplingSchedule,
        repeat_noise: bool = False,
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        generator: Generators = None,
    ) -> torch.Tensor:
        """x_{t-1} from x_0 and the noise in x_t (DDIM, equation 12)."""
        alpha_prev, sigma = schedule.alphas_prev[index], schedule.sigmas[index]
        direction = max(1.0 - alpha_prev - sigma**2, 0.0) ** 0.5 * e_t
        # Drawn also where sigma is 0: the seeds of the original depend on it.
        noise = sigma * noise_like(pred_x0.shape, pred_x0.device, repeat_noise, generator) * temperature
        if noise_dropout > 0.0:
            noise = torch.nn.functional.dropout(noise, p=noise_dropout)
        return alpha_prev**0.5 * pred_x0 + direction + noise

    def prepared(self, cond: Any) -> Any:
        """Let the model compute what stays the same over all steps, if it knows how."""
        prepare = getattr(self.model, "prepare_condition", None)
        if cond is None or prepare is None or not knows_joined_conditions(self.model):
            return cond
        return prepare(cond)

    def at_step(self, cond: Any, step: int, steps: int) -> Any:
        """What is left of a condition in one step of a run of ``steps``, if the model knows of conditions
        that do not act throughout.

        Args:
            step: counted from the noise on, from 0.
        """
        left = getattr(self.model, "condition_at_step", None)
        if cond is None or left is None or not knows_joined_conditions(self.model):
            return cond
        return left(cond, step, steps)


def refuse_unsupported(**arguments: Any) -> None:
    """For arguments of the original that have no meaning here.

    Raises:
        ValueError: one of them is set.
    """
    given = [name for name, value in arguments.items() if value is not None and value is not False]
    if given:
        raise ValueError(f"{', '.join(given)}: not supported; leave out {' and '.join(given)}")
