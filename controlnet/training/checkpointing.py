"""Checkpoints that a full disk or a kill cannot break, and that run no code when they are read."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import CheckpointIO

from controlnet.training.data.records import DataError
from ldm.torch_files import read_torch_file
from ldm.weights import WeightsError, atomic_write, system_error

logger = logging.getLogger(__name__)

SAVE_KINDS = ("whole", "control-only")
"""``whole``: the full model, usable as it is. ``control-only``: just the weights that are trained;
``tool_merge_control.py`` puts them together with their base again, and ``--resume`` takes the base from
``--base``."""


class CheckpointError(OSError):
    """A checkpoint could not be saved."""


class AtomicCheckpointIO(CheckpointIO):
    """Saves beside the target and renames; reads tensors and plain data only.

    Lightning's own buffers the whole file in memory, writes it by way of ``$TMPDIR``, and reads with pickle
    when asked for a URL.

    Args:
        kept: names of the weights to save; None saves all. Optimizer states are always those of the trained
            weights.
    """

    def __init__(self, kept: Collection[str] | None = None):
        self.kept = None if kept is None else frozenset(kept)
        self.last_saved: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises CheckpointError, with the last good checkpoint, when the file system refuses."""
        path = Path(path)
        if self.kept is not None:
            state = checkpoint["state_dict"]
            checkpoint = {
                **checkpoint,
                "state_dict": {name: state[name] for name in state if name in self.kept},
            }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer hides a full disk in a RuntimeError
            raise CheckpointError(self._report(path, checkpoint, error)) from error
        self.last_saved = path

    def _report(self, path: Path, checkpoint: dict[str, Any], error: Exception) -> str:
        earlier = path if path.exists() else self.last_saved
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        return (
            f"The checkpoint of step {checkpoint.get('global_step')} could not be saved to {path}: "
            f"{system_error(error)} ({free:,} bytes are free). "
            + (
                f"The one before it is whole: --resume {earlier}"
                if earlier
                else "There is no checkpoint before it."
            )
        )

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Always weights-only, whatever is asked for.

        Raises:
            WeightsError: the file is missing, is no checkpoint of a training run, or holds more than data.
        """
        path = Path(path)
        if not path.is_file():
            raise WeightsError(
                f"{path}: there is no such checkpoint (web addresses are not read: download it first)."
            )
        try:
            checkpoint, _mapped = read_torch_file(path)
        except Exception as error:  # damaged and hostile files may raise nearly anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"{path}: cannot be read as a checkpoint of a training run: {reason}"
            ) from error
        if not isinstance(checkpoint, dict) or not all(
            isinstance(checkpoint.get(part), dict) for part in ("loops", "state_dict")
        ):
            raise WeightsError(
                f"{path}: these are weights without the state of a training run. To start from them use "
                "--base."
            )
        lacking = sorted((self.kept or frozenset()) - checkpoint["state_dict"].keys())
        if lacking:
            raise WeightsError(
                f"{path}: {len(lacking)} of the weights to train are not in this checkpoint "
                f"({', '.join(lacking[:3])} …). "
                "Was it made with other settings of sd_locked, or of another model?"
            )
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class SaveLast(pl.Callback):
    """Saves ``last.ckpt`` every N optimizer steps, at the end, and before a stop.

    Ctrl-C and SIGTERM let the step finish, save, and end the run cleanly; a second Ctrl-C stops at once. A
    DataError, such as of a picture that broke, gets the checkpoint into its text. What is saved is always the
    state behind a step, never between two batches of one accumulated gradient. It must come after the
    callback that averages the weights.

    Args:
        path: of the checkpoint.
        every_n_steps: optimizer steps from one checkpoint to the next.
    """

    def __init__(self, path: str | Path, every_n_steps: int):
        if every_n_steps < 1:
            raise ValueError(f"Checkpoints are saved every N steps, N at least 1, got {every_n_steps}.")
        self.path = Path(path)
        self.every_n_steps = every_n_steps
        self.stop_requested = False
        self._old_handlers: dict[int, Any] = {}
        self._progress: dict[str, Any] | None = None  # behind the last step of this run
        self._rewinds = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps_seen = self._step_saved = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old_handlers[number] = signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        logger.warning("Stopping after this step, with a checkpoint. A second Ctrl-C stops at once, without.")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps_seen:
            return
        self._steps_seen = trainer.global_step
        self._progress = {"epoch": trainer.current_epoch, "fit_loop": trainer.fit_loop.state_dict()}
        stop = trainer.strategy.reduce_boolean_decision(self.stop_requested, all=False)
        if stop or self._ends(trainer) or trainer.global_step % self.every_n_steps == 0:
            trainer.save_checkpoint(self.path)
            self._step_saved = trainer.global_step
        if stop:
            logger.warning("Saved. To continue: --resume %s", self.path)
            trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Data that cannot be read are no reason to lose what was learnt: all processes meet here at once."""
        if not isinstance(exception, DataError) or self._progress is None:
            return
        end = f"Mend the file, then go on with --resume {self.path}"
        try:
            if trainer.global_step > self._step_saved:
                self._rewinds = True
                trainer.save_checkpoint(self.path)
        except CheckpointError as error:
            end = str(error)
        exception.args = (f"{exception}\nThe run ended at step {trainer.global_step}. {end}",)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._rewinds and self._progress:
            # To behind the last step: gradients of batches since then are not saved.
            checkpoint["epoch"] = self._progress["epoch"]
            checkpoint["loops"]["fit_loop"] = self._progress["fit_loop"]

    @staticmethod
    def _ends(trainer: pl.Trainer) -> bool:
        ends_epochs = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        return trainer.global_step == trainer.max_steps or ends_epochs

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()


def save_best(folder: str | Path, count: int, monitor: str = "val/loss") -> ModelCheckpoint:
    """Lightning's callback that keeps the ``count`` checkpoints of the smallest validation loss."""
    return ModelCheckpoint(
        folder,
        filename="best_step{step:07d}_loss{" + monitor + ":.4f}",
        auto_insert_metric_name=False,
        monitor=monitor,
        save_top_k=count,
        every_n_epochs=1,  # in Lightning's words: after every validation
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )
