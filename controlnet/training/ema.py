"""The average of the trained weights that a run keeps with ``--ema``, outside of the model.

The average that a model carries within itself, under the keys ``model_ema.*`` of released checkpoints, is
`ldm.modules.ema.LitEma`.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel


class _TrainedWeights(pl.LightningModule):
    """The trained parameters of a module, the very same objects, under names without dots."""

    def __init__(self, module: nn.Module):
        super().__init__()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


class TrainedWeightsEMA(EMAWeightAveraging):
    """Lightning's ``EMAWeightAveraging``, which would copy and average the whole model, for the trained
    weights alone.

    A control copy is 361 M weights of 1.4 G; and an average of frozen weights, rounded anew at every step,
    drifts away from them. As with Lightning's, validation uses the average, checkpoints hold it as
    ``state_dict`` and the weights of the last step as ``current_model_state``, and when training ends the
    model has the average.

    Args:
        decay: in [0, 1); how much of the average stays at each step.
    """

    # Both are there from `setup` on.
    _trained: _TrainedWeights
    _average_model: AveragedModel

    def __init__(self, decay: float = 0.999, **options: Any):
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of the average must be in [0, 1), got {decay}.")
        super().__init__(decay=decay, use_buffers=False, **options)
        self._in_use = False  # in a validation

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._trained = _TrainedWeights(pl_module)
            self._trained._device = trainer.strategy.root_device  # where the weights are about to go
            super().setup(trainer, self._trained, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        super().on_train_batch_end(trainer, self._trained, *batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, self._trained)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, self._trained)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, self._trained)
        self._in_use = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, self._trained)
        self._in_use = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if self._in_use:  # a checkpoint that is saved now must not take the one for the other
            self.on_validation_epoch_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        average = self._average_model.module.state_dict()
        average = {name.replace("/", "."): tensor for name, tensor in average.items()}
        current = checkpoint["state_dict"]
        checkpoint["current_model_state"] = {name: current[name] for name in average}
        checkpoint["state_dict"] = {**current, **average}
        checkpoint["averaging_state"] = {"n_averaged": self._average_model.n_averaged}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        names = [name.replace("/", ".") for name, _ in self._trained.named_parameters()]
        average = {name.replace(".", "/"): checkpoint["state_dict"][name] for name in names}
        self._average_model.module.load_state_dict(average)
        if "averaging_state" in checkpoint:
            self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=False)
