"""The Gaussian that a VAE's encoder gives for each latent.

Source: ldm/modules/distributions/distributions.py of the original.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class DiagonalGaussianDistribution:
    """Independent normal distributions.

    Args:
        parameters: means and logarithms of variances ``[B, 2C, H, W]``, means first.
        deterministic: a variance of 0.

    Attributes:
        mean, logvar, std, var: ``[B, C, H, W]``; the logarithm is clamped to [-30, 20].
    """

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False):
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = torch.zeros_like(self.mean) if deterministic else torch.exp(self.logvar)

    def sample(
        self, generator: torch.Generator | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One sample ``[B, C, H, W]``, from standard normal ``noise`` of that shape where it is given.

        Otherwise the noise is drawn on the CPU, as in the original, also for CUDA tensors.
        """
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> torch.Tensor:
        """The means ``[B, C, H, W]``."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> torch.Tensor:
        """Kullback-Leibler divergence ``[B]`` from ``other``, or from the standard normal distribution."""
        if self.deterministic:
            return torch.zeros(self.mean.shape[0]).to(self.mean)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = (
                (self.mean - other.mean) ** 2 / other.var
                + self.var / other.var
                - 1.0
                - self.logvar
                + other.logvar
            )
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: torch.Tensor, dims: Sequence[int] = (1, 2, 3)) -> torch.Tensor:
        """Negative log-likelihood of a sample, summed over ``dims``."""
        if self.deterministic:
            return torch.zeros(self.mean.shape[0]).to(self.mean)
        return 0.5 * (math.log(2.0 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var).sum(
            dim=list(dims)
        )
