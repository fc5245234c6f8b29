"""The samplers that front ends offer, and the one that they call fast: the only place that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.schedulers import SchedulerSampler


@dataclass(frozen=True)
class SamplerKind:
    """One of the samplers.

    ``make`` is given the model. ``takes_eta`` says whether eta chooses between deterministic steps and noise.
    """

    title: str
    make: Callable[[Any], Sampler]
    source: str
    takes_eta: bool = False


@dataclass(frozen=True)
class Speed:
    """A sampler and its number of steps."""

    sampler: str
    steps: int

    @property
    def title(self) -> str:
        return f"{SAMPLERS[self.sampler].title}, {self.steps} steps"


def _scheduler(name: str, **options: Any) -> Callable[[Any], Sampler]:
    return partial(SchedulerSampler, scheduler=name, **options)


TRAILING = {"timestep_spacing": "trailing"}
"""Begin where the noise is the whole of the picture, as training does (arXiv 2305.08891, table 2): in few
steps it matters most."""

SAMPLERS: dict[str, SamplerKind] = {
    "ddim": SamplerKind("DDIM", DDIMSampler, "arXiv 2010.02502", takes_eta=True),
    "plms": SamplerKind("PLMS", PLMSSampler, "arXiv 2202.09778"),
    "dpmpp_2m_karras": SamplerKind(
        "DPM++ 2M Karras",
        _scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True),
        "arXiv 2211.01095, steps of 2206.00364",
    ),
    "unipc": SamplerKind("UniPC", _scheduler("UniPCMultistepScheduler", **TRAILING), "arXiv 2302.04867"),
    "euler": SamplerKind("Euler", _scheduler("EulerDiscreteScheduler", **TRAILING), "arXiv 2206.00364"),
    "euler_a": SamplerKind(
        "Euler a", _scheduler("EulerAncestralDiscreteScheduler", **TRAILING), "k-diffusion"
    ),
    "ddpm": SamplerKind(
        "DDPM", _scheduler("DDPMScheduler", clip_sample=False, **TRAILING), "arXiv 2006.11239"
    ),
    "lcm": SamplerKind("LCM (for LCM weights)", _scheduler("LCMScheduler"), "arXiv 2310.04378"),
}
"""By name; the first is the default."""

DEFAULT_SAMPLER = "ddim"
USUAL = Speed(DEFAULT_SAMPLER, 20)
FAST = Speed("unipc", 6)
"""Keeps to map and prompt like ``USUAL``, in less time: measured in docs/samplers.md."""
