"""Many requests without a page: a Lightning ``predict`` loop over jobs, on one process or spread over many
machines.

What a job gives depends on the job alone, never on which process does it, so the files are the same however
many work.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from controlnet.generation.entries import append_entry, carry_out, merge_manifest, read_entries
from controlnet.generation.generator import Generator
from controlnet.generation.jobs import Job, quick_fingerprint
from controlnet.generation.loading import load_generator
from controlnet.generation.models import ModelFiles
from controlnet.generation.watcher import GenerationError
from controlnet.listing import MANIFEST
from ldm.weights import WeightsError

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
                if self.generator is None:
                    raise RuntimeError("setup() loads the model before the first job")
                entry = carry_out(job, self.generator, self.folder, self.asked(job), measure=self.measure)
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


def make_trainer(device: torch.device, devices: int = 1, num_nodes: int = 1) -> pl.Trainer:
    """What `run_jobs` spreads jobs with: ``devices`` processes on each of ``num_nodes`` machines."""
    return pl.Trainer(
        accelerator="cpu" if device.type == "cpu" else "auto",
        devices=devices,
        num_nodes=num_nodes,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


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
