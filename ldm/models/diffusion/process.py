"""The Gaussian diffusion process: its schedule as buffers, and the formulas between x_0, x_t, noise and
velocity.

Sources: DDPM (arXiv 2006.11239), progressive distillation (2202.00512) for v, and
ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule


class GaussianProcess:
    """Mixin for modules: call `register_schedule` in ``__init__``. Shapes: x ``[B, ...]``, t int64
    ``[B]``.
    """

    parameterization: str
    v_posterior: float

    def register_schedule(
        self,
        given_betas: Sequence[float] | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Compute the schedule in float64 and keep it as float32 buffers under the checkpoint's names."""
        if given_betas is not None:
            betas = np.asarray(given_betas, dtype=np.float64)
        else:
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        alphas = 1.0 - betas
        alphas_cumprod = np.cumprod(alphas)
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        posterior_variance = (1 - self.v_posterior) * betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
        posterior_variance += self.v_posterior * betas
        self.num_timesteps = len(betas)
        self.linear_start, self.linear_end = linear_start, linear_end
        buffers = {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas_cumprod),
            "log_one_minus_alphas_cumprod": np.log(1 - alphas_cumprod),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas_cumprod - 1),
            "posterior_variance": posterior_variance,
            # The variance is 0 at the first step.
            "posterior_log_variance_clipped": np.log(np.maximum(posterior_variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(alphas_cumprod_prev) / (1 - alphas_cumprod),
            "posterior_mean_coef2": (1 - alphas_cumprod_prev) * np.sqrt(alphas) / (1 - alphas_cumprod),
        }
        for name, values in buffers.items():
            # The device is named so that a skeleton on the meta device has its schedule all the same.
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32, device="cpu"))
        weights = self._variational_weights(betas, alphas, alphas_cumprod, posterior_variance)
        self.register_buffer(
            "lvlb_weights", torch.tensor(weights, dtype=torch.float32, device="cpu"), persistent=False
        )

    def _variational_weights(self, betas, alphas, alphas_cumprod, posterior_variance) -> np.ndarray:
        """Weights of the variational bound's terms, float64 ``[T]``."""
        if self.parameterization == "eps":
            with np.errstate(divide="ignore"):
                weights = betas**2 / (2 * posterior_variance * alphas * (1 - alphas_cumprod))
        elif self.parameterization == "x0":
            # Written as in the original, whose loss this must equal; the bound itself would divide by 2 (1 -
            # alpha).
            weights = 0.5 * np.sqrt(alphas_cumprod) / (2.0 * 1 - alphas_cumprod)
        else:
            weights = np.ones_like(betas)
        weights[0] = weights[1]
        return weights

    def q_sample(
        self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Noisy x_t from x_0 (DDPM, equation 4); noise ``[B, ...]`` is drawn where it is not given."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def get_v(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Velocity v = sqrt(a) noise - sqrt(1 - a) x_0."""
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x.shape) * noise
            - extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x.shape) * x
        )

    def predict_start_from_noise(
        self, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """x_0 from x_t and its noise."""
        return (
            extract_into_tensor(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract_into_tensor(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * noise
        )

    def predict_start_from_z_and_v(self, x_t: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """x_0 from x_t and its velocity."""
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_t.shape) * x_t
            - extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_t.shape) * v
        )

    def predict_eps_from_z_and_v(self, x_t: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Noise from x_t and its velocity."""
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_t.shape) * v
            + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_t.shape) * x_t
        )

    def min_snr_weight(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights ``[B]`` of the loss that keep steps of little noise from dominating (min-SNR, arXiv
        2303.09556).
        """
        alphas = self.alphas_cumprod[t].double()
        ratio = alphas / (1 - alphas)
        per_error = {"x0": 1.0, "eps": ratio, "v": ratio + 1}[self.parameterization]
        return (ratio.clamp(max=gamma) / per_error).float()

    def predict_start(self, x_t: torch.Tensor, t: torch.Tensor, model_output: torch.Tensor) -> torch.Tensor:
        """x_0 from x_t and the model's output, whichever parameterization it has."""
        if self.parameterization == "x0":
            return model_output
        if self.parameterization == "v":
            return self.predict_start_from_z_and_v(x_t, t, model_output)
        return self.predict_start_from_noise(x_t, t, model_output)

    def q_posterior(
        self, x_start: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean ``[B, ...]``, variance and its clipped logarithm ``[B, 1, ...]`` of x_{t-1} (DDPM, equation
        6).
        """
        mean = (
            extract_into_tensor(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract_into_tensor(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = extract_into_tensor(self.posterior_variance, t, x_t.shape)
        return mean, variance, extract_into_tensor(self.posterior_log_variance_clipped, t, x_t.shape)
