"""The diffusion models under the original's import path, one class a file: `DDPM` on pictures, on it
`LatentDiffusion`, which ControlNet extends, and its variant for inpainting.
"""

from ldm.models.diffusion.ddpm.ddpm import DDPM
from ldm.models.diffusion.ddpm.inpainting import LatentInpaintDiffusion
from ldm.models.diffusion.ddpm.latent_diffusion import LatentDiffusion, disabled_train
from ldm.models.diffusion.ddpm.wrapper import DiffusionWrapper

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion", "LatentInpaintDiffusion", "disabled_train"]
