"""Whether the model follows its hints yet, measured by the loss with the hints of other pictures."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from cldm.cldm import ControlLDM
from controlnet.training.callbacks import batch_size_of

logger = logging.getLogger(__name__)


class ControlGap(pl.Callback):
    """At each validation, compares the loss with the right hints and with those of the batch's other
    pictures.

    Noise and time steps are the same in both, and the same at every validation. While the control copy is not
    connected yet, both losses are equal. ControlNet's training has a moment, the "sudden convergence" (arXiv
    2302.05543, figure 4), from which it follows the hint: the gap opens, and a line in the log says so.

    Args:
        threshold: share of the loss by which the gap must exceed 0 to be announced.
    """

    def __init__(self, threshold: float = 0.05):
        self.threshold = threshold
        self.converged_at: int | None = None

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: ControlLDM,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        size = batch_size_of(batch)
        index = batch.get("index", torch.arange(size))
        if (index == index[0]).all():
            return  # there is no other hint: small batches are filled up with the pictures that there are
        key = pl_module.control_key
        right, _ = pl_module.shared_step(batch)
        shuffled, _ = pl_module.shared_step({**batch, key: batch[key].roll(1, dims=0)})
        losses = {
            "val/loss_right_hint": right,
            "val/loss_shuffled_hint": shuffled,
            "val/control_gap": shuffled - right,
        }
        pl_module.log_dict(losses, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        gap = trainer.callback_metrics.get("val/control_gap")
        if gap is None or trainer.sanity_checking:
            return
        right = trainer.callback_metrics["val/loss_right_hint"]
        logger.info("step %d: loss %.5f, %+.5f with shuffled hints", trainer.global_step, right, gap)
        if self.converged_at is None and gap > self.threshold * right:
            self.converged_at = trainer.global_step
            logger.warning(
                "Sudden convergence: from step %d at the latest the model follows the hint. The loss is "
                "%.5f with the "
                "right hints and %.5f with shuffled ones.",
                trainer.global_step,
                right,
                right + gap,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"converged_at": self.converged_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.converged_at = state_dict["converged_at"]
