"""What a resumed run takes from its settings, and not from its checkpoint."""

from __future__ import annotations

import logging
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LambdaLR

from controlnet.training.ema import TrainedWeightsEMA
from controlnet.training.settings import Settings

logger = logging.getLogger(__name__)


class SettingsOfNow(pl.Callback):
    """Lets a resumed run heed other settings of the learning rate, and do without the average it had.

    Lightning restores the rate together with the optimizer, so that another ``learning_rate`` would count for
    nothing; a schedule that is new would begin at its first step; and where the average is not kept any more,
    the weights would be the average, and the optimizer's state that of others. The log says what is another
    than before. A run that goes on with the settings of then is left as it is.

    Args:
        settings: those of now.
    """

    def __init__(self, settings: Settings):
        self.asked = {
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup_steps,
            "cosine_decay": settings.cosine_decay,
            "its last step": settings.max_steps if settings.cosine_decay else None,
        }
        self._then: dict[str, Any] = {}  # none in checkpoints of earlier versions

    def state_dict(self) -> dict[str, Any]:
        return self.asked

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._then = dict(state_dict)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Behind an average the weights of the last step are those to go on with."""
        last = checkpoint.get("current_model_state")
        if last and not any(isinstance(callback, TrainedWeightsEMA) for callback in _callbacks_of(trainer)):
            logger.warning(
                "ema was on and is off now: the run goes on from the weights of the last step, not from "
                "their average."
            )
            pl_module.load_state_dict(last, strict=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        if (
            trainer.ckpt_path is None
            or self._then == self.asked
            or not all(isinstance(schedule, LambdaLR) for schedule in schedules)  # others cannot be asked
        ):
            return
        before = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for optimizer, fresh in zip(trainer.optimizers, _fresh_optimizers(pl_module), strict=True):
            for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
                group["lr"] = group["initial_lr"] = new.get("initial_lr", new["lr"])
        for schedule in schedules:
            _go_on(cast(LambdaLR, schedule), trainer.global_step)
        now = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        changes = [
            f"{name} was {self._then[name]} and is {value} now"
            for name, value in self.asked.items()
            if name in self._then and self._then[name] != value
        ]
        if changes or now != before:
            logger.warning(
                "%s: the run goes on at a learning rate of %g, and not of %g.",
                "; ".join(changes) or "The learning rate is another than in the checkpoint",
                now[0],
                before[0],
            )


def _callbacks_of(trainer: Any) -> list[pl.Callback]:
    return trainer.callbacks  # which Lightning's types do not know


def _fresh_optimizers(module: pl.LightningModule) -> list[torch.optim.Optimizer]:
    """As they are made at the start of a run."""
    made: Any = module.configure_optimizers()
    made = made[0] if isinstance(made, tuple) else made
    return list(made) if isinstance(made, list) else [made]


def _go_on(schedule: LambdaLR, step: int) -> None:
    """Let a schedule stand where it would after so many steps at the rates of now."""
    schedule.last_epoch = schedule.last_epoch or step  # a new one has counted none
    schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
    for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]
