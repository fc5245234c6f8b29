"""The name under which scripts written for the original import the DDIM sampler; there is only one."""

from ldm.models.diffusion.ddim import DDIMSampler

__all__ = ["DDIMSampler"]
