"""Where the project's own files lie (in a checkout at its root, in an installed package inside it), and how
files of others are opened.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from ldm.files import ROOT, find_file, home

__all__ = ["CONFIGS", "EXAMPLES", "MODELS", "ROOT", "find_file", "home", "open_regular"]

MODELS = ROOT / "models"
CONFIGS = ROOT / "configs"
EXAMPLES = ROOT / "examples"


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Open a file for reading bytes, if it is one: a pipe would wait forever, ``/dev/zero`` never ends.

    Raises:
        ValueError: a device, a pipe, a socket or a folder; the text does not name the path.
        OSError: no such file, or no permission.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (paths may be of any kind)
        raise ValueError("not a regular file but a folder, a device or a pipe")
    return Path(path).open("rb")
