"""Where the project's own files lie: in a checkout at its root, in an installed package inside it."""

from __future__ import annotations

from ldm.files import ROOT, find_file, home

__all__ = ["CONFIGS", "EXAMPLES", "MODELS", "ROOT", "find_file", "home"]

MODELS = ROOT / "models"
CONFIGS = ROOT / "configs"
EXAMPLES = ROOT / "examples"
