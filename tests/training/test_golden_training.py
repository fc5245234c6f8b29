"""Three AdamW steps through Lightning's own loop give the losses and weights that the original's code
gave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ldm.util import instantiate_from_config


class SeedAsRecorded(pl.Callback):
    """``torch.manual_seed(900 + step)`` right before each step, as when the golden data were made."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.manual_seed(900 + trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("name", ["train", "train_unlocked", "train_mid"])
def test_three_steps_equal_the_original(
    name: str, golden: Callable, tiny_config: Callable, fill_by_recipe: Callable
) -> None:
    tensors, case = golden(name)
    model = fill_by_recipe(instantiate_from_config(tiny_config(case)))
    model.sd_locked = case["sd_locked"]
    model.learning_rate = case["learning_rate"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    batch = {"jpg": tensors["jpg"], "hint": tensors["hint"], "txt": case["txt"]}

    recorder = SeedAsRecorded()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader([batch] * 3, batch_size=None))

    torch.testing.assert_close(torch.tensor(recorder.losses), tensors["loss"], rtol=1e-4, atol=0)
    after = model.state_dict()
    assert sorted(key for key in before if not torch.equal(before[key], after[key])) == case["changed"]
    for key in (key for key in tensors if key.startswith("after.")):
        difference = (after[key.removeprefix("after.")] - tensors[key]).abs().mean().item()
        assert difference <= 1e-4, (key, difference)

    # What is not trained has no gradient, so it costs no memory and lies in no bucket of DDP.
    with_gradient = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert with_gradient == set(case["changed"])
