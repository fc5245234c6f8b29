"""Timings against a peer in the same process. Tests say what is right; these say how fast it is."""

import ldm  # noqa: F401 - makes torchvision importable where it lacks its compiled operators
