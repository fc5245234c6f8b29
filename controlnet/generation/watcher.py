"""What happens between the steps of a run: the caller is told, and asked whether to stop; faults are
named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from controlnet.generation.memory import MemorySaver
from controlnet.generation.sampling import to_uint8
from ldm.models.diffusion.sampler import Sampler

PREVIEW_SIDE = 16  # latent pixels: a preview costs at most (16 / 64)² of decoding a 512x512 picture


class GenerationError(RuntimeError):
    """A run that failed for a reason worth telling the user in one line."""


class Cancelled(Exception):
    """The run was stopped because ``should_stop`` said so."""


@dataclass(frozen=True, eq=False)
class Step:
    """One finished sampling step. ``preview()`` decodes its latents small: uint8 RGB ``[N, h, w, 3]``."""

    index: int
    total: int
    preview: Callable[[], np.ndarray]


class Watcher:
    """What happens after every step: the latents are checked, the caller is told, and asked whether to
    stop.
    """

    def __init__(
        self,
        on_step: Callable[[Step], None] | None,
        should_stop: Callable[[], bool] | None,
        dtype: torch.dtype,
    ):
        self.on_step, self.should_stop, self.dtype = on_step, should_stop, dtype
        self.total: int | None = None
        self.done = 0
        """Steps of the passes before."""

    def expect(self, total: int) -> None:
        """How many steps all passes have together."""
        self.total, self.done = total, 0

    def bound_to(self, sampler: Sampler, saver: MemorySaver) -> Callable[[Tensor, int], None]:
        """The ``img_callback`` of ``sampler``, with previews decoded by the way of ``saver``."""

        def after_step(pred_x0: Tensor, index: int) -> None:
            steps = self.total or len(sampler.ddim_timesteps)  # 30 steps asked for are 31
            index += self.done
            if not torch.isfinite(pred_x0).all():
                raise GenerationError(
                    f"The latents of step {index + 1} of {steps} are not finite: {cure(self.dtype)}."
                )
            if self.on_step is not None:
                self.on_step(Step(index, steps, lambda: preview(saver, pred_x0)))
            if self.should_stop is not None and self.should_stop():
                raise Cancelled(f"Cancelled after step {index + 1} of {steps}.")

        return after_step


def cure(dtype: torch.dtype) -> str:
    """What helps against values that are not finite."""
    if dtype == torch.float32:
        return (
            "the model's weights are at fault, for this was computed in fp32; or try a smaller guidance scale"
        )
    return "try --precision fp32, or a smaller guidance scale"


@torch.inference_mode()
def preview(saver: MemorySaver, latents: Tensor) -> np.ndarray:
    """Decode latents ``[N, 4, h, w]`` at a small size: uint8 RGB ``[N, h', w', 3]``, no side over 128
    pixels.
    """
    scale = PREVIEW_SIDE / max(latents.shape[-2:])
    if scale < 1:
        latents = torch.nn.functional.interpolate(latents, scale_factor=scale, mode="area")
    with saver.working(saver.model.first_stage_model):
        return to_uint8(saver.model.decode_first_stage(latents))
