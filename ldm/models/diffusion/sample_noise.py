"""Random numbers that belong to a sample, not to a process.

Where a batch carries ``noise_seed``, an integer for each item, whatever chance decides about an item in a
training step
follows from its seed: its place in the posterior, its time step, its noise. The step is then the same in one
process or spread over several, after a resume, and on any device, since the numbers are drawn on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch


class Purpose(IntEnum):
    """What numbers are drawn for; each has a stream of its own."""

    POSTERIOR = 0
    TIME_STEP = 1
    NOISE = 2


class SampleNoise:
    """Streams of random numbers for the samples of a batch.

    Args:
        seeds: one for each sample, in [0, 2^63).
    """

    def __init__(self, seeds: torch.Tensor | Sequence[int]):
        self.seeds = [int(seed) for seed in seeds]

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any], rows: int | None = None) -> SampleNoise | None:
        """The streams of a batch's first ``rows`` items, or None where the batch has no seeds."""
        return cls(batch["noise_seed"][:rows]) if "noise_seed" in batch else None

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
