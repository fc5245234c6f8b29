"""How a person starts this project's command line from where they are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def command_name() -> str:
    """What to type for the command line: ``controlnet`` where the shell finds this environment's, else its
    path (``.venv/bin/controlnet``), or where it is not installed ``.venv/bin/python -m controlnet``.
    """
    folder = Path(sys.executable).parent
    return _as_typed(folder, "controlnet") or f"{_as_typed(folder, Path(sys.executable).name)} -m controlnet"


def _as_typed(folder: Path, name: str) -> str | None:
    """The shortest way to name a program of this environment; None where it is not there."""
    program = folder / name
    if not program.is_file() and not program.with_suffix(".exe").is_file():
        return None
    found = shutil.which(name)
    if found is not None and Path(found).parent == folder:
        return name
    relative = os.path.relpath(program)
    return str(program) if relative.startswith("..") else relative
