"""Small models for code that builds on the original: a class of the test's own in place of one of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from golden_data import fill_by_recipe, load_golden, tiny_config
from omegaconf import OmegaConf

from cldm.cldm import ControlLDM
from ldm.util import allow_targets


@pytest.fixture(scope="session", autouse=True)
def _own_classes_are_targets() -> None:
    """As a project does that has model classes of its own."""
    allow_targets("original_style")


@pytest.fixture(scope="session")
def batch() -> dict[str, Any]:
    """Two pictures of 64 pixels with hints and prompts."""
    tensors, case = load_golden("train")
    return {"jpg": tensors["jpg"], "hint": tensors["hint"], "txt": case["txt"]}


@pytest.fixture
def build() -> Callable[..., ControlLDM]:
    """``build(cls, unet="original_style.X", control=..., **params)``: a small model without layers of zeros.

    Its weights follow from their names alone: two models have the same ones where they have the same names.
    """

    def build(
        cls: type = ControlLDM, unet: str | None = None, control: str | None = None, **params: Any
    ) -> ControlLDM:
        config = tiny_config(load_golden("train")[1])
        if unet:
            config.params.unet_config.target = unet
        if control:
            config.params.control_stage_config.target = control
        torch.manual_seed(0)
        return fill_by_recipe(cls(**{**OmegaConf.to_container(config.params), **params}))

    return build


@pytest.fixture
def fit(batch: dict[str, Any]) -> Callable[..., tuple[list[float], set[str]]]:
    """``fit(model)`` trains two steps by Lightning: their losses, and the names of what has changed."""

    def fit(model: pl.LightningModule, **changes: Any) -> tuple[list[float], set[str]]:
        losses = _Losses()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=2,
            callbacks=[losses],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, torch.utils.data.DataLoader([{**batch, **changes}] * 2, batch_size=None))
        after = dict(model.named_parameters())
        return losses.values, {name for name in before if not torch.equal(before[name], after[name])}

    return fit


class _Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.manual_seed(100 + trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(outputs["loss"].item())
