"""Results on disk, and the manifest that lists them: one entry a job."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from controlnet.generation.generator import Generator
from controlnet.generation.jobs import Job, result_files
from controlnet.generation.png import save_png
from controlnet.generation.result import Result
from controlnet.generation.several_files import without_files
from controlnet.lines import read_objects
from controlnet.listing import MANIFEST
from ldm.weights import atomic_write

logger = logging.getLogger(__name__)


def carry_out(
    job: Job, generator: Generator, folder: Path, asked: Mapping[str, Any], **how: Any
) -> dict[str, Any]:
    """Do a job, and write its PNG files.

    Args:
        folder: where they go.
        asked: what the result depends on, for the entry.
        how: of ``Generator.generate``.

    Returns:
        The entry of the manifest.
    """
    request, warnings = job.request()
    result = generator.generate(request, **how)
    return {
        "name": job.name,
        "files": write_result(job.name, result, folder),
        "asked": dict(asked),
        "request": result.request.settings(),
        **without_files(result.packed_further),
        "seeds": result.seeds,
        "scores": [score.summary() for score in result.scores],
        "remarks": [*warnings, *result.remarks],
        "model": result.model,
        "precision": result.precision,
        "seconds": round(result.seconds, 3),
    }


def write_result(name: str, result: Result, folder: Path) -> list[str]:
    """The hints as they are shown and the pictures; their paths below the folder."""
    hints = result.all_shown
    files = result_files(name, len(result.pictures), len(hints))
    metadata = [*[None] * len(hints), *(result.metadata(k) for k in range(len(result.pictures)))]
    for file, picture, text in zip(files, [*hints, *result.pictures], metadata, strict=True):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_png(folder / file, picture, text)
    return files


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """All entries of the manifest and of parts that an interrupted run left; a line that a kill cut off
    is not one.
    """
    entries = []
    for path in [folder / MANIFEST, *sorted(folder.glob(f"{MANIFEST}.part*"))]:
        if not path.is_file():
            continue
        for line in read_objects(path):
            if line.problem or not isinstance(line.content.get("name"), str):
                logger.warning("%s: line %d is damaged, its job is done again.", path, line.number)
            else:
                entries.append(line.content)
    return entries


def merge_manifest(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Write the manifest anew, the named jobs first and in that order, and remove the parts.

    Returns:
        The entries of the named jobs.
    """
    latest = {entry["name"]: entry for entry in read_entries(folder)}
    named = [latest.pop(name) for name in names if name in latest]
    with atomic_write(folder / MANIFEST) as temporary:
        Path(temporary).write_text("".join(json.dumps(entry) + "\n" for entry in [*named, *latest.values()]))
    for part in folder.glob(f"{MANIFEST}.part*"):
        part.unlink()
    return named


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """One more line of a manifest or a part of one."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(entry) + "\n")  # a killed run may have left half a line before
        file.flush()
        os.fsync(file.fileno())
