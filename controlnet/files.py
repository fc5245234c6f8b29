"""Where the project's own files lie: in a checkout at its root, in an installed package inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _root() -> Path:
    """The checkout's root, or the folder that the wheel puts the same files into."""
    checkout = _PACKAGE.parent
    return checkout if (checkout / "models" / "cldm_v15.yaml").is_file() else _PACKAGE / "assets"


ROOT = _root()
MODELS = ROOT / "models"
CONFIGS = ROOT / "configs"
EXAMPLES = ROOT / "examples"
