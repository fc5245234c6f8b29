"""Where the project's files lie: its own, and the weights that somebody downloads.

There is one layout, that of the original's repository (``models``, ``annotator/ckpts``) with our ``configs``
and ``examples``, in up to two places: ``ROOT`` has what comes with the project, `home` what is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[1]


def _root() -> Path:
    is_checkout = (_PACKAGES / "models" / "cldm_v15.yaml").is_file()
    return _PACKAGES if is_checkout else _PACKAGES / "controlnet" / "assets"


ROOT = _root()
"""The checkout, or the folder of an installed package that the wheel puts the same files into."""


def home() -> Path:
    """The folder that downloaded weights go to, into the same places as in a checkout.

    It is ``CONTROLNET_HOME`` where that is set; else the checkout itself; and for an installed package, whose
    own folder is not the user's to fill, ``controlnet`` in the user's folder for caches (``XDG_CACHE_HOME``,
    by default ``~/.cache``).
    """
    chosen = os.environ.get("CONTROLNET_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if ROOT == _PACKAGES:
        return ROOT
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "controlnet"


def find_file(*names: str) -> Path:
    """The first of some files that is there, each looked for in ``ROOT`` and then in `home`.

    Args:
        names: places in the layout, the best file first, such as ``models/control_sd15_seg.safetensors`` and
            ``models/control_sd15_seg.pth``.

    Returns:
        Its path; where none is there, the path under `home` at which the last one is missing.
    """
    places = [folder / name for name in names for folder in (ROOT, home())]
    return next((place for place in places if place.is_file()), places[-1])
