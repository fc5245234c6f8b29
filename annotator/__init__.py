"""Detectors: a picture in, a raw map out. One package each, under the original's names."""

import ldm  # noqa: F401 - makes torchvision importable where it lacks its compiled operators
