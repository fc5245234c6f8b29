"""What is drawn at random: the Gaussian that a VAE's encoder gives for each latent, and numbers that belong
to a sample of a batch.

Source of the first: ldm/modules/distributions/distributions.py of the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
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


def normal_kl(
    mean1: torch.Tensor | float,
    logvar1: torch.Tensor | float,
    mean2: torch.Tensor | float,
    logvar2: torch.Tensor | float,
) -> torch.Tensor:
    """Kullback-Leibler divergence of the first normal distributions from the second, value by value.

    Shapes follow torch's rules of broadcasting; at least one argument is a tensor.
    """
    like = next(value for value in (mean1, logvar1, mean2, logvar2) if torch.is_tensor(value))
    logvar1, logvar2 = (torch.as_tensor(value).to(like) for value in (logvar1, logvar2))
    distance = (mean1 - mean2) ** 2 * torch.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 - 1.0 + torch.exp(logvar1 - logvar2) + distance)


class Purpose(IntEnum):
    """What numbers of a `SampleNoise` are drawn for; each has a stream of its own."""

    POSTERIOR = 0
    TIME_STEP = 1
    NOISE = 2


class SampleNoise:
    """Random numbers that belong to a sample, not to a process.

    Where a batch carries ``noise_seed``, an integer for each item, whatever chance decides about an item in a
    training step follows from its seed: its place in the posterior, its time step, its noise. So the step is
    the same in one process or spread over several, after a resume, and on any device, since the numbers are
    drawn on the CPU.

    Args:
        seeds: one for each sample, in [0, 2^63).
    """

    def __init__(self, seeds: torch.Tensor | Sequence[int]):
        self.seeds = [int(seed) for seed in seeds]

    @classmethod
    def argument_of(cls, batch: Mapping[str, Any], rows: int | None = None) -> dict[str, SampleNoise]:
        """The keyword argument ``random`` for a batch's first ``rows`` items; none where it has no seeds."""
        return {"random": cls(batch["noise_seed"][:rows])} if "noise_seed" in batch else {}

    def normal(self, purpose: Purpose, like: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers ``[B, ...]`` of the shape, type and device of ``like``."""
        draws = [
            np.random.default_rng([seed, purpose]).standard_normal(like.shape[1:], dtype=np.float32)
            for seed in self.seeds
        ]
        return torch.from_numpy(np.stack(draws)).to(like)

    def time_steps(self, count: int, device: torch.device) -> torch.Tensor:
        """int64 ``[B]`` in [0, count)."""
        draws = [np.random.default_rng([seed, Purpose.TIME_STEP]).integers(count) for seed in self.seeds]
        return torch.tensor(draws, dtype=torch.int64, device=device)
