"""Which pictures of a folder are meant, and what is made of them is called; for all tools alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from controlnet.lines import read_objects
from controlnet.outputs import normal_name
from controlnet.pictures import SUFFIXES

MANIFEST = "manifest.jsonl"
"""Lists the results beside it: one entry a line, whose ``files`` are paths relative to its folder."""

MARK = ".results"
"""An empty file of this name marks a folder that holds nothing but results."""


def list_pictures(folder: Path, leave_out: Iterable[Path] = (), *, with_results: bool = False) -> list[Path]:
    """The pictures in a folder and below it, in the order of their paths.

    They are known by their suffix (``SUFFIXES``). Hidden files and folders are left out, and with them the
    ``._a.jpg`` that macOS puts beside ``a.jpg``; so is what is no regular file. Results of earlier runs,
    known by `MANIFEST` and `MARK`, are left out too, unless the folder itself holds nothing else: then they
    are meant.

    Args:
        leave_out: folders below ``folder`` whose pictures do not count, such as that of results.
        with_results: results of earlier runs count as well.

    Raises:
        ValueError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    closed = {path.resolve() for path in leave_out}
    found: list[Path] = []
    results: dict[Path, set[Path]] = {}
    is_marked = False
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if MARK in files and here != folder and not with_results:
            folders.clear()
            is_marked = True
            continue
        folders[:] = [
            name for name in folders if not name.startswith(".") and (here / name).resolve() not in closed
        ]
        found += [here / name for name in files if not name.startswith(".")]
        if not with_results:
            results[here] = set(_listed_results(here, files))
    pictures = sorted(path for path in found if path.suffix.lower() in SUFFIXES and path.is_file())
    own = results.pop(folder, set())
    below = set().union(*results.values())
    others = [path for path in pictures if path not in below]
    chosen = [path for path in others if path not in own] or others
    if not chosen:
        known = ", ".join(sorted(SUFFIXES))
        but = " but results of earlier runs" if pictures or is_marked else f"; known suffixes are {known}"
        raise ValueError(f"{folder}: no pictures{but}.")
    return chosen


def mark_results(folder: Path) -> None:
    """Make a folder for results, and make it known as one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def _listed_results(folder: Path, files: Iterable[str]) -> Iterator[Path]:
    """What the manifest of a folder lists, and the parts of one that an interrupted run left."""
    for name in files:
        if name == MANIFEST or name.startswith(f"{MANIFEST}.part"):
            with suppress(ValueError, OSError):  # a file of somebody else's, of the same name
                for line in read_objects(folder / name):
                    listed = line.content.get("files")
                    if isinstance(listed, list):
                        yield from (folder / file for file in listed if isinstance(file, str))


def result_names(pictures: Sequence[Path], folder: Path) -> list[Path]:
    """For each picture the name of what is made of it: its path below the folder, without its suffix where no
    other picture has the same name.
    """
    names = [path.relative_to(folder) for path in pictures]
    stems = [normal_name(str(name.with_suffix(""))) for name in names]
    count = Counter(stems)
    return [
        name.with_suffix("") if count[stem] == 1 else name for name, stem in zip(names, stems, strict=True)
    ]
