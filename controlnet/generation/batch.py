"""Many requests without a page: a Lightning ``predict`` loop over jobs, on one process or spread over many
machines.

What a job gives depends on the job alone, never on which process does it, so the files are the same however
many work.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from controlnet.generation.generator import Generator, Result
from controlnet.generation.jobs import Job, quick_fingerprint, result_files
from controlnet.generation.loading import load_generator
from controlnet.generation.models import ModelFiles
from controlnet.generation.png import save_png
from controlnet.generation.several_files import without_files
from controlnet.generation.watcher import GenerationError
from controlnet.lines import read_objects
from controlnet.listing import MANIFEST
from ldm.weights import WeightsError, atomic_write

logger = logging.getLogger(__name__)


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
        self.model_asked = {
            "model": files.name,
            "weights": quick_fingerprint(files.all_files()),
            "precision": options.get("precision", "auto"),
        }

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
            except Exception as error:  # one odd job must not end the others
                logger.exception("The job %s failed.", job.name)
                entry = {"name": job.name, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
            append_entry(self.folder / f"{MANIFEST}.part{self.global_rank}", entry)

    def asked(self, job: Job) -> dict[str, Any]:
        """What a result depends on, with the model; see ``Job.asked``."""
        return {**job.asked(), **self.model_asked}

    def _do(self, job: Job) -> dict[str, Any]:
        if self.generator is None:
            raise RuntimeError("setup() loads the model before the first job")
        asked = self.asked(job)
        request, warnings = job.request()
        result = self.generator.generate(request, measure=self.measure)
        return {
            "name": job.name,
            "files": self._write(job.name, result),
            "asked": asked,
            "request": result.request.settings(),
            **without_files(result.packed_further),
            "seeds": result.seeds,
            "scores": [score.summary() for score in result.scores],
            "remarks": [*warnings, *result.remarks],
            "model": result.model,
            "precision": result.precision,
            "seconds": round(result.seconds, 3),
        }

    def _write(self, name: str, result: Result) -> list[str]:
        """The hints as they are shown and the pictures; their paths below the folder."""
        hints = result.all_shown
        files = result_files(name, len(result.pictures), len(hints))
        metadata = [*[None] * len(hints), *(result.metadata(k) for k in range(len(result.pictures)))]
        for file, picture, text in zip(files, [*hints, *result.pictures], metadata, strict=True):
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            save_png(self.folder / file, picture, text)
        return files


def run_jobs(task: GenerateJobs, trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Do what is not done yet, and bring the manifest up to date.

    Returns:
        The entries of all jobs in their order; those that failed have an ``error``.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    done = {entry["name"]: entry for entry in read_entries(task.folder)}
    todo = [index for index, job in enumerate(task.jobs) if not is_done(task, job, done.get(job.name))]
    logger.info("%d of %d jobs are done already.", len(task.jobs) - len(todo), len(task.jobs))
    if todo:
        numbers: Any = todo  # a list will do as a data set
        trainer.predict(task, DataLoader(numbers), return_predictions=False)
        trainer.strategy.barrier()
    if trainer.is_global_zero:
        return merge_manifest(task.folder, [job.name for job in task.jobs])
    return []


def is_done(task: GenerateJobs, job: Job, entry: dict[str, Any] | None) -> bool:
    """True where the manifest knows the job with the same inputs, settings and model, and its files are
    there.
    """
    if entry is None or "error" in entry or job.problem:
        return False
    asked = json.loads(json.dumps(task.asked(job)))
    return entry.get("asked") == asked and all((task.folder / file).is_file() for file in entry["files"])


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
