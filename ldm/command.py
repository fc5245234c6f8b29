"""How a person starts this project's command line from where they are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parents[1]
"""The folder that has our packages: a checkout, or an environment's."""


def command_name() -> str:
    """What to type for the command line: ``controlnet`` where the shell finds this environment's, else its
    path (``.venv/bin/controlnet``); where it is not installed ``.venv/bin/python -m controlnet``, and away
    from the checkout ``/there/.venv/bin/python /there/controlnet``.
    """
    folder = Path(sys.executable).parent
    if program := _as_typed(folder, "controlnet"):
        return program
    is_found = Path.cwd() == PACKAGES or PACKAGES.name in ("site-packages", "dist-packages")
    package = "-m controlnet" if is_found else shlex.quote(_from_here(PACKAGES / "controlnet"))
    return f"{_as_typed(folder, Path(sys.executable).name)} {package}"


def _as_typed(folder: Path, name: str) -> str | None:
    """The shortest way to name a program of this environment; None where it is not there."""
    program = folder / name
    if not program.is_file() and not program.with_suffix(".exe").is_file():
        return None
    found = shutil.which(name)
    return name if found is not None and Path(found).parent == folder else shlex.quote(_from_here(program))


def _from_here(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
