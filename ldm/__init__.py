"""Stable Diffusion's networks, diffusion, samplers, and weights in and out, under the original's names."""

from ldm.torchvision_ops import declare_missing_ops

# Before anything below imports Lightning, open_clip or mmcv, which all import torchvision.
declare_missing_ops()
