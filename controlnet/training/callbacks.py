"""Callbacks of a training run: random numbers that can be resumed, a measure of speed, and a stop at NaN."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from controlnet.training.data.loader import BrokenBatch
from controlnet.training.data.records import DataError
from controlnet.training.faults import NonFiniteError


class SeedEveryBatch(pl.Callback):
    """Seeds the random numbers of Python, NumPy and torch before each batch, from (seed, batch, process).

    So a resumed run draws the same numbers as one that was never interrupted, whatever else has drawn some
    (pictures for the log, validation), and checkpoints need not hold the state of any generator.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.fit_loop.total_batch_idx
        seed = int(np.random.SeedSequence([self.seed, number, trainer.global_rank]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (others may draw from it)
        torch.manual_seed(seed)  # of all devices


class EndIfBroken(pl.Callback):
    """Ends the run, in all processes together, where a batch could not be read in one of them.

    To be placed first: the other callbacks then only see batches. `SaveLast` saves before the end.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        faults = batch.faults if isinstance(batch, BrokenBatch) else []
        if trainer.strategy.reduce_boolean_decision(bool(faults), all=False):
            raise DataError("\n".join(faults) or "Another process cannot read its pictures.")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self.on_train_batch_start(trainer, pl_module, batch, batch_idx)


class Throughput(pl.Callback):
    """Shows and logs samples per second, over all processes, since the last time it was logged."""

    def __init__(self, every_n_batches: int = 10):
        self.every_n_batches = every_n_batches

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._samples, self._batches = time.perf_counter(), 0, 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch_size_of(batch) * trainer.world_size
        self._batches += 1
        if self._batches % self.every_n_batches == 0:
            now = time.perf_counter()
            speed = self._samples / max(now - self._since, 1e-9)
            self._since, self._samples = now, 0
            pl_module.log("samples/s", speed, prog_bar=True, rank_zero_only=True)


class NonFiniteGuard(pl.Callback):
    """Stops the run before a loss or gradient of NaN or infinity reaches the weights.

    The error names the step, the files of the batch and the last good checkpoint.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        here = not torch.isfinite(loss)
        if trainer.strategy.reduce_boolean_decision(
            here, all=False
        ):  # or the other processes would wait for this one
            what = f"The loss is {loss.item()}" if here else "The loss of another process is NaN or infinite"
            raise NonFiniteError(self._report(trainer, what))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # float16's scaler skips such steps itself, and lowers its factor
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        pl_module.log("grad_norm", norm)
        if not torch.isfinite(norm):
            raise NonFiniteError(self._report(trainer, f"The gradient's norm is {norm.item()}"))

    def _report(self, trainer: pl.Trainer, what: str) -> str:
        files = "".join(f"\n  {line}" for line in describe_batch(trainer, self._batch))
        saved = getattr(trainer.strategy.checkpoint_io, "last_saved", None) or trainer.ckpt_path
        return (
            f"{what} at step {trainer.global_step}. The batch:{files}\n"
            + (f"The last good checkpoint is {saved}." if saved else "No checkpoint was saved before.")
            + " A smaller learning rate, or bf16-mixed instead of 16-mixed, often helps."
        )


def batch_size_of(batch: dict[str, Any]) -> int:
    """Items in a batch of the loader."""
    return len(next(iter(batch.values())))


def describe_batch(trainer: pl.Trainer, batch: Any) -> list[str]:
    """The files of a batch's items, one line each."""
    dataset: Any = getattr(trainer.train_dataloader, "items", None)
    indices = batch.get("index") if isinstance(batch, dict) else None
    if indices is None or not hasattr(dataset, "describe"):
        return ["(this data set does not say which files its items are made of)"]
    return [dataset.describe(int(index)) for index in indices]
