"""ControlNet: the locked UNet with its trainable copy, under the original's names."""

import ldm  # noqa: F401 - makes torchvision importable where it lacks its compiled operators
