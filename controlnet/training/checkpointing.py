"""Checkpoints that a full disk or a kill cannot break, and that run no code when they are read."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import CheckpointIO
from torch.nn import Parameter

from controlnet.conditions import ConditionError
from controlnet.training.data.records import DataError
from controlnet.training.faults import CheckpointError
from ldm.torch_files import read_torch_file
from ldm.weights import WeightsError, atomic_write, system_error

logger = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Saves beside the target and renames; reads tensors and plain data only.

    Lightning's own buffers the whole file in memory, writes it by way of ``$TMPDIR``, and reads with pickle
    when asked for a URL.

    Args:
        kept: names of the weights to save; None saves all. Optimizer states are always those of the trained
            weights.
        choices: settings that say what is trained and how, saved with it: by their names, plain data.
        model: that goes on, to see beforehand whether a checkpoint is of it; None does not look.
    """

    def __init__(
        self,
        kept: Collection[str] | None = None,
        choices: Mapping[str, Any] | None = None,
        model: torch.nn.Module | None = None,
    ):
        self.kept = None if kept is None else frozenset(kept)
        self.choices, self.model = dict(choices or {}), model
        self.last_saved: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Raises CheckpointError, with the last good checkpoint, when the file system refuses."""
        path = Path(path)
        checkpoint = {**checkpoint, "choices": self.choices}
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
            WeightsError: the file is missing, is no checkpoint of a training run, holds more than data, or is
                of a run that trained something else.
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
        self._check_choices(path, checkpoint)
        self._check_weights(path, checkpoint["state_dict"])
        return checkpoint

    def _check_choices(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """States of optimizers go with the weights that they were made for, in number and order."""
        then = checkpoint.get("choices")
        then = then if isinstance(then, dict) else {}  # none in checkpoints of earlier versions
        differences = [
            f"{name} was {then[name]} and is {value} now"
            for name, value in self.choices.items()
            if name in then and then[name] != value
        ]
        states = checkpoint.get("optimizer_states")
        if not differences and self.model is not None and isinstance(states, list) and states:
            count = sum(len(group["params"]) for state in states for group in state["param_groups"])
            trained: Callable[[], Iterable[Parameter]] = getattr(self.model, "trained_parameters", list)
            weights = {id(p): p for p in (*self.model.parameters(), *trained())}  # some may be no part of it
            now = sum(p.requires_grad for p in weights.values())
            if count != now:
                names = ", ".join(self.choices)
                differences = [f"{count} weights then, {now} now; look at {names} and the model"]
        if differences:
            raise WeightsError(
                f"{path}: this run trained something else: {'; '.join(differences)}. Go on with the settings "
                "of then, or begin a new run from its weights with --base."
            )

    def _check_weights(self, path: Path, state: Mapping[str, Any]) -> None:
        shapes = {} if self.model is None else {k: v.shape for k, v in self.model.state_dict().items()}
        wanted = set(shapes) if self.kept is None else self.kept
        lacking = sorted(wanted - state.keys())
        if lacking:
            raise WeightsError(
                f"{path}: {len(lacking)} of the model's weights are not in this checkpoint "
                f"({', '.join(lacking[:3])} …). "
                "Was it made with other settings of save or sd_locked, or of another model?"
            )
        others = [name for name in shapes if name in state and state[name].shape != shapes[name]]
        others += sorted(state.keys() - shapes.keys()) if shapes else []
        if others:
            raise WeightsError(
                f"{path}: this is a checkpoint of another model: {len(others)} of its weights are unknown or "
                f"of another shape here ({', '.join(others[:3])} …). Give the model that it was made with."
            )

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class SaveLast(pl.Callback):
    """Saves ``last.ckpt`` every N optimizer steps, at the end, and before a stop.

    Ctrl-C and SIGTERM let the step finish, save, and end the run cleanly; a second Ctrl-C stops at once. A
    DataError, such as of a picture that broke, or a ConditionError gets the checkpoint into its text. What is
    saved is always the state behind a step, never between two batches of one accumulated gradient. It must
    come after the callback that averages the weights.

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
            trainer.save_checkpoint(self.path, weights_only=False)
            self._step_saved = trainer.global_step
        if stop:
            logger.warning("Saved. To continue: --resume %s", self.path)
            trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Data that cannot be read are no reason to lose what was learnt: all processes meet here at once."""
        if not isinstance(exception, DataError | ConditionError) or self._progress is None:
            return
        end = f"Mend the file, then go on with --resume {self.path}"
        try:
            if trainer.global_step > self._step_saved:
                self._rewinds = True
                trainer.save_checkpoint(self.path, weights_only=False)
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
