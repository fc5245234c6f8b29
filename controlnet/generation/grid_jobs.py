"""Grids on disk: a job for every cell, and when they are done one labelled sheet for every source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlnet.generation.entries import append_entry, merge_manifest
from controlnet.generation.grid import Axis, Grid, note_of, read_axis
from controlnet.generation.jobs import Job
from controlnet.generation.png import save_png
from controlnet.generation.request import RequestError
from controlnet.generation.sheet import compose_sheet
from controlnet.listing import MANIFEST
from controlnet.pictures import read_picture

MAX_CELLS = 400
SEED = 0
"""Of a grid that names none: its cells are to differ in what its axes vary alone."""


def axis_of_argument(text: str) -> Axis:
    """``seed=1-4``, ``strength=0.5,1``, or ``prompt=a house|a lake``.

    Raises:
        RequestError: as `read_axis`.
    """
    name, _, values = text.partition("=")
    name = {"steps": "ddim_steps"}.get(name.strip(), name.strip()).replace("-", "_")
    return read_axis(name, values.replace("|", "\n") if name == "prompt" else values)


def grid_jobs(jobs: Sequence[Job], grid: Grid) -> list[Job]:
    """The jobs of all cells of each job, named ``NAME_r1c1`` and so on. One with a problem stays as it is.

    Raises:
        RequestError: jobs that repeat pictures, whose requests are their own, or too many cells.
    """
    grid.check_count(MAX_CELLS)
    if any(job.repeats for job in jobs):
        raise RequestError("A grid varies settings, and --from-image repeats them: choose one of the two.")
    cells: list[Job] = []
    for job in jobs:
        cells += [job] if job.problem else [_cell(job, grid, *place) for place in grid.places()]
    return cells


def cell_name(job: Job, row: int, column: int) -> str:
    """Counted from 1."""
    return f"{job.name}_r{row + 1}c{column + 1}"


def sheet_file(job: Job) -> str:
    """Of a job's sheet, below the output folder."""
    return f"{job.name}_grid.png"


def _cell(job: Job, grid: Grid, row: int, column: int) -> Job:
    settings = {**job.settings, "num_samples": 1, **grid.settings(row, column)}
    if settings.get("seed", -1) == -1:
        settings["seed"] = SEED
    return dataclasses.replace(job, name=cell_name(job, row, column), settings=settings)


def write_sheets(
    jobs: Sequence[Job], grid: Grid, folder: Path, entries: Sequence[dict[str, Any]]
) -> list[str]:
    """Compose the sheets from the cells' files, and list them in the manifest. Cells that failed are grey;
    where all did, there is no sheet.

    Args:
        jobs: those that `grid_jobs` was given.
        folder: where the results are.
        entries: of the manifest.

    Returns:
        The sheets' paths below the folder.
    """
    done = {entry["name"]: entry for entry in entries if "error" not in entry}
    written = []
    for job in jobs:
        cells = {place: done.get(cell_name(job, *place)) for place in grid.places()}
        there = {place: entry for place, entry in cells.items() if entry is not None}
        if not there:
            continue
        pictures = {place: read_picture(folder / entry["files"][-1]) for place, entry in there.items()}
        first = next(iter(there.values()))
        note = note_of(grid, first["request"], first["model"])
        sheet = compose_sheet(pictures, grid.rows.labels, grid.columns.labels, note)
        file = sheet_file(job)
        save_png(folder / file, sheet.picture)
        axes = {axis.name: list(axis.values) for axis in (grid.rows, grid.columns) if axis.name}
        append_entry(
            folder / f"{MANIFEST}.part0", {"name": f"{job.name}_grid", "files": [file], "grid": axes}
        )
        written.append(file)
    if written:
        merge_manifest(folder, [entry["name"] for entry in entries])
    return written
