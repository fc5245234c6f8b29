"""Learning rates over time, for ``scheduler_config`` of a model."""

from __future__ import annotations

import math


class WarmupSchedule:
    """A linear rise, then a constant rate or half a cosine down to ``final``.

    Args:
        warmup_steps: optimizer steps from nearly 0 to the full rate.
        decay_steps: step at which the cosine arrives; 0 keeps the rate constant.
        final: the last rate as a share of the full one.
    """

    def __init__(self, warmup_steps: int = 0, decay_steps: int = 0, final: float = 0.0):
        if warmup_steps < 0 or (decay_steps and decay_steps <= warmup_steps):
            raise ValueError(
                f"The rate rises for {warmup_steps} steps and falls until step {decay_steps}: not possible."
            )
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.final = final

    def schedule(self, step: int) -> float:
        """Factor in [0, 1] for the learning rate of optimizer step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.decay_steps:
            return 1.0
        way = min(1.0, (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * way))
