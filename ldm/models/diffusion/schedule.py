"""How noisy a sample is at each time step: the constants of a diffusion process.

Sources: DDPM (arXiv 2006.11239), and `register_schedule` in ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm.modules.diffusionmodules.util import make_beta_schedule


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variances beta_t of a process, and what follows from them; arrays are float64 ``[T]``.

    Args:
        betas: in (0, 1).
        v_posterior: 0 for the posterior's own variance (DDPM, equation 7), 1 for beta.
    """

    betas: np.ndarray
    v_posterior: float = 0.0

    @classmethod
    def of(
        cls,
        given_betas: Sequence[float] | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        v_posterior: float = 0.0,
    ) -> NoiseSchedule:
        """The schedule of the given betas, or of a kind that `make_beta_schedule` knows.

        Raises:
            ValueError: an unknown kind, no step, or betas of no process: they would make the latents NaN.
        """
        if given_betas is None:
            if min(linear_start, linear_end) < 0:  # NumPy would go on with the real part of the root
                raise ValueError(
                    f"a noise schedule has no betas below 0, as linear_start {linear_start} and linear_end "
                    f"{linear_end} say"
                )
            betas = make_beta_schedule(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        else:
            betas = np.asarray(given_betas, dtype=np.float64)
        if not betas.size or not ((betas > 0) & (betas < 1)).all():  # NaN is neither
            raise ValueError(
                f"a noise schedule of {betas.size} steps with betas of which not all are in (0, 1); look at "
                "timesteps, linear_start, linear_end and given_betas"
            )
        return cls(betas, v_posterior)

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Share of the picture's power in x_t."""
        return np.cumprod(1.0 - self.betas)

    @property
    def posterior_variance(self) -> np.ndarray:
        """Variance of x_{t-1} where x_t and x_0 are known; 0 at the first step."""
        alphas_cumprod = self.alphas_cumprod
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        variance = (1 - self.v_posterior) * self.betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
        return variance + self.v_posterior * self.betas

    def buffers(self) -> dict[str, np.ndarray]:
        """All constants, under the names by which checkpoints hold them."""
        betas, alphas_cumprod, variance = self.betas, self.alphas_cumprod, self.posterior_variance
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        return {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas_cumprod),
            "log_one_minus_alphas_cumprod": np.log(1 - alphas_cumprod),
            "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas_cumprod - 1),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(alphas_cumprod_prev) / (1 - alphas_cumprod),
            "posterior_mean_coef2": (1 - alphas_cumprod_prev) * np.sqrt(1.0 - betas) / (1 - alphas_cumprod),
        }

    def variational_weights(self, parameterization: str) -> np.ndarray:
        """Weights of the variational bound's terms for a network that predicts "eps", "x0" or "v"."""
        if parameterization == "eps":
            alphas, alphas_cumprod = 1.0 - self.betas, self.alphas_cumprod
            with np.errstate(divide="ignore"):
                weights = self.betas**2 / (2 * self.posterior_variance * alphas * (1 - alphas_cumprod))
        elif parameterization == "x0":
            # Written as in the original, whose loss this must equal; the bound itself would divide by
            # 2 (1 - alpha).
            weights = 0.5 * np.sqrt(self.alphas_cumprod) / (2.0 * 1 - self.alphas_cumprod)
        else:
            weights = np.ones_like(self.betas)
        weights[0] = weights[1]  # the variance is 0 at the first step
        return weights
