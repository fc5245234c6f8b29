"""The diffusion models under the original's import path, one class a file: `DDPM` on pictures, and on it
`LatentDiffusion`, which ControlNet extends.
"""

from ldm.models.diffusion.ddpm.ddpm import DDPM
from ldm.models.diffusion.ddpm.latent_diffusion import LatentDiffusion
from ldm.models.diffusion.ddpm.wrapper import DiffusionWrapper

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]
