"""Many requests without a page: a Lightning ``predict`` loop over jobs, on one process or spread over many
machines.

What a job gives depends on the job alone, never on which process does it, so the files are the same however
many work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from controlnet.conditions import DEFAULT, find_condition
from controlnet.generation.generator import GenerationError, Generator, Result
from controlnet.generation.models import ModelFiles, load_generator
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request, RequestError, request_from_settings
from controlnet.pictures import read_picture
from ldm.weights import WeightsError, atomic_write

logger = logging.getLogger(__name__)

PICTURES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
    ".jp2",
    ".ppm",
    ".pgm",
)
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Job:
    """One request on disk.

    ``name`` is the results' path below the output folder, without suffix. ``repeats`` is a PNG of ours that
    carries its request; else ``image`` or ``hint`` and ``settings`` make it. ``problem`` is what is wrong
    with the job itself.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    image: Path | None = None
    hint: Path | None = None
    repeats: Path | None = None
    problem: str = ""

    def request(self) -> Request:
        """Read the files. Raises RequestError, PictureError or another ValueError with one line."""
        if self.problem:
            raise RequestError(self.problem)
        if self.repeats is not None:
            return read_request(self.repeats)
        picture = None if self.image is None else read_picture(self.image)
        hint = None
        if self.hint is not None:
            hint = find_condition(self.settings.get("condition", DEFAULT))().read(self.hint).hint
        return request_from_settings(self.settings, picture, hint)

    def asked(self) -> dict[str, Any]:
        """What the job depends on, ready for JSON: a finished job whose entry says the same is not done
        again.
        """
        files = {"image": self.image, "hint": self.hint, "repeats": self.repeats}
        hashes = {kind: _hash_of(path) for kind, path in files.items() if path is not None}
        return {**self.settings, **hashes}


def jobs_of_pictures(source: Path, settings: dict[str, Any], repeat: bool = False) -> list[Job]:
    """One job for a picture, or one for every picture in a folder and below it, in the order of their names.

    Args:
        source: a file or a folder.
        settings: of every request; ``prompt`` is needed unless ``repeat``.
        repeat: the pictures are results of ours, and their own requests are meant.

    Raises:
        RequestError: nothing there, or no picture in it.
    """
    if source.is_file():
        paths, root = [source], source.parent
    else:
        root = source
        paths = sorted(
            path for path in source.rglob("*") if path.suffix.lower() in PICTURES and path.is_file()
        )
    if not paths:
        raise RequestError(f"{source}: there is no such picture, nor a folder with pictures.")
    relative = [path.relative_to(root) for path in paths]
    stems = [path.with_suffix("").as_posix() for path in relative]
    names = [
        path.as_posix() if stems.count(stem) > 1 else stem for path, stem in zip(relative, stems, strict=True)
    ]
    if repeat:
        return [Job(name, repeats=path) for name, path in zip(names, paths, strict=True)]
    return [Job(name, settings, image=path) for name, path in zip(names, paths, strict=True)]


def jobs_of_lines(path: Path, settings: dict[str, Any]) -> list[Job]:
    """One job for every line of a JSON-lines file.

    A line is an object with ``image`` or ``hint`` (paths, relative to the file), perhaps ``name``, and
    settings, which go before those given here. A line that is no such object becomes a job with a problem.
    """
    jobs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name = f"{number:05d}"
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError("it is no JSON object")
            name = _checked_name(content.pop("name", name))
            if "map" in content:  # the name of the hint before there were other conditions
                content["hint"] = content.pop("map")
            files = {kind: path.parent / content.pop(kind) for kind in ("image", "hint") if content.get(kind)}
            job = Job(name, merged_settings(settings, content), **files)
        except (ValueError, TypeError) as error:
            job = Job(name, problem=f"{path.name}, line {number}: {error}")
        if job.name in {other.name for other in jobs}:
            job = Job(
                f"{job.name}-{number}", problem=f"{path.name}, line {number}: the name {name} came before"
            )
        jobs.append(job)
    return jobs


def merged_settings(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings of a line before those of the command line; options go with the condition that they were
    given for.
    """
    if own.get("condition", defaults.get("condition", DEFAULT)) != defaults.get("condition", DEFAULT):
        defaults = {name: value for name, value in defaults.items() if name != "options"}
    return {**defaults, **own}


class GenerateJobs(pl.LightningModule):
    """Does jobs by their index, and writes PNG files and a part of the manifest.

    Args:
        jobs: all of them; every process has the same list.
        folder: where results go.
        files: the model, which each process loads onto its own device.
        options: of ``load_generator``: precision and save_memory.
        measure: run the detector on the results.
    """

    def __init__(
        self, jobs: Sequence[Job], folder: Path, files: ModelFiles, options: dict[str, Any], measure: bool
    ):
        super().__init__()
        self.jobs, self.folder, self.files, self.options, self.measure = jobs, folder, files, options, measure
        self.generator: Generator | None = None
        self._threads_before = torch.get_num_threads()

    def setup(self, stage: str) -> None:
        # On a CPU the last bits of a sum depend on the number of threads, which launchers divide among
        # processes.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count() or 1)
        self.generator = load_generator(self.files, str(self.trainer.strategy.root_device), **self.options)

    def teardown(self, stage: str) -> None:
        torch.set_num_threads(self._threads_before)

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for index in batch.tolist():
            job = self.jobs[index]
            try:
                entry = self._do(job)
            except WeightsError:
                raise  # nothing that follows would fare better
            except (ValueError, GenerationError, OSError) as error:
                entry = {"name": job.name, "error": " ".join(str(error).split())}
            _append(self.folder / f"{MANIFEST}.part{self.global_rank}", entry)

    def _do(self, job: Job) -> dict[str, Any]:
        asked = job.asked()
        result = self.generator.generate(job.request(), measure=self.measure)
        return {
            "name": job.name,
            "files": self._write(job.name, result),
            "asked": asked,
            "request": result.request.settings(),
            "seeds": result.seeds,
            "scores": [score.summary() for score in result.scores],
            "remarks": list(result.remarks),
            "model": result.model,
            "seconds": round(result.seconds, 3),
        }

    def _write(self, name: str, result: Result) -> list[str]:
        """The hint as it is shown and the pictures; their paths below the folder."""
        count = len(result.pictures)
        pictures = [name if count == 1 else f"{name}_{index}" for index in range(count)]
        files = {f"{name}_map.png": (result.shown, None)}
        files |= {f"{n}.png": (result.pictures[k], result.metadata(k)) for k, n in enumerate(pictures)}
        for file, (picture, metadata) in files.items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            save_png(self.folder / file, picture, metadata)
        return list(files)


def run_jobs(task: GenerateJobs, trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Do what is not done yet, and bring the manifest up to date.

    Returns:
        The entries of all jobs in their order; those that failed have an ``error``.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    done = {entry["name"]: entry for entry in read_entries(task.folder)}
    todo = [index for index, job in enumerate(task.jobs) if not is_done(job, done.get(job.name), task.folder)]
    logger.info("%d of %d jobs are done already.", len(task.jobs) - len(todo), len(task.jobs))
    if todo:
        trainer.predict(task, DataLoader(todo), return_predictions=False)
        trainer.strategy.barrier()
    if trainer.is_global_zero:
        return merge_manifest(task.folder, [job.name for job in task.jobs])
    return []


def is_done(job: Job, entry: dict[str, Any] | None, folder: Path) -> bool:
    """True where the manifest knows the job with the same inputs and settings, and its files are there."""
    if entry is None or "error" in entry or job.problem:
        return False
    return entry["asked"] == job.asked() and all((folder / file).is_file() for file in entry["files"])


def read_entries(folder: Path) -> list[dict[str, Any]]:
    """All entries of the manifest and of parts that an interrupted run left; a line that a kill cut off is
    not one.
    """
    entries = []
    for path in [folder / MANIFEST, *sorted(folder.glob(f"{MANIFEST}.part*"))]:
        if not path.is_file():
            continue
        for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
            try:
                entries.append(json.loads(line))
            except ValueError:
                logger.warning("%s: a line is damaged, its job is done again.", path)
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


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(entry) + "\n")  # a killed run may have left half a line before
        file.flush()
        os.fsync(file.fileno())


def _checked_name(name: Any) -> str:
    """A result's name from a stranger's file: it must stay below the output folder."""
    path = PurePosixPath(str(name))
    if (
        not isinstance(name, str)
        or not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
    ):
        raise ValueError(f"the name {name!r} is no path below the output folder")
    return name


def _hash_of(path: Path) -> str:
    """The start of a file's SHA-256, or nothing where it cannot be read: reading it again will say why."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
