"""A run that was stopped anywhere ends with the very weights of one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from controlnet.training.callbacks import SeedEveryBatch
from controlnet.training.checkpointing import AtomicCheckpointIO, SaveLast, save_best
from controlnet.training.data.dataset import Draw
from controlnet.training.data.loader import make_loader
from controlnet.training.ema import TrainedWeightsEMA
from ldm.weights import WeightsError

STEPS = 9


class Points:
    """Ten items, each with noise of its own stream."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        noise = np.random.default_rng([1, draw.position]).standard_normal(4)
        return {"x": (noise + draw.index).astype(np.float32), "index": draw.index}


class Learner(pl.LightningModule):
    """A frozen layer and a trained one, a schedule, and random numbers of every kind in each step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)
        self.trained = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1)
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        noise = torch.randn(()) + random.random() + np.random.rand()
        return (self.trained(self.frozen(batch["x"])) - noise).square().mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val/loss", self.trained(self.frozen(batch["x"])).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.trained.parameters(), lr=0.05)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}
        ]


class KeepEvery(pl.Callback):
    """Copies each last.ckpt before the next one replaces it."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.path.exists():
            shutil.copy(self.path, self.path.with_name(f"copy{trainer.global_step:02}.ckpt"))


def fit(
    folder: Path,
    *extra: pl.Callback,
    resume: Path | None = None,
    kept: list[str] | None = None,
    workers: int = 0,
    accumulate: int = 2,
    max_steps: int = STEPS,
) -> dict[str, torch.Tensor]:
    """Train: 5 batches an epoch, 6 if two make a step; validation every 2 steps.

    Gives the averaged weights and those of the last step.
    """
    learner = Learner()
    learner.strict_loading = kept is None
    ema = TrainedWeightsEMA(0.8)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None,
        callbacks=[ema, SeedEveryBatch(7), SaveLast(folder / "last.ckpt", 1), *extra, save_best(folder, 2)],
        plugins=[AtomicCheckpointIO(kept)],
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    loader = make_loader(Points(), 2, seed=5, workers=workers, accumulate=accumulate)
    trainer.fit(learner, loader, make_loader(Points(), 4, shuffle=False), ckpt_path=resume)
    final = torch.load(folder / "last.ckpt", weights_only=True)
    return {
        f"{kind} {name}": t
        for kind in ("state_dict", "current_model_state")
        for name, t in final[kind].items()
    }


def assert_identical(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_at_any_step_is_exact(tmp_path: Path, accumulate: int) -> None:
    whole = tmp_path / "whole"
    expected = fit(whole, KeepEvery(whole / "last.ckpt"), accumulate=accumulate)
    assert not torch.equal(
        expected["state_dict trained.0.weight"], expected["current_model_state trained.0.weight"]
    )
    torch.testing.assert_close(expected["state_dict frozen.weight"], Learner().frozen.weight, rtol=0, atol=0)
    checkpoints = sorted(whole.glob("copy*.ckpt"))[:-1] + sorted(whole.glob("best*.ckpt"))
    assert len(checkpoints) == STEPS - 1 + 2
    for checkpoint in checkpoints:
        assert_identical(fit(tmp_path / checkpoint.stem, resume=checkpoint, accumulate=accumulate), expected)


def test_small_checkpoints_and_workers_are_exact_too(tmp_path: Path) -> None:
    expected = fit(tmp_path / "whole")
    kept = [name for name in Learner().state_dict() if name.startswith("trained.")]
    small = fit(tmp_path / "small", kept=kept, max_steps=5)
    assert all("frozen" not in name for name in small)
    resumed = fit(tmp_path / "small", resume=tmp_path / "small" / "last.ckpt", kept=kept, workers=2)
    assert_identical(resumed, {name: tensor for name, tensor in expected.items() if "frozen" not in name})


class Interrupt(pl.Callback):
    """Presses Ctrl-C in the middle of a step, between two batches of one accumulated gradient."""

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.fit_loop.total_batch_idx == 8:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_ends_cleanly(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    fit(tmp_path / "stopped", Interrupt(), accumulate=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)["global_step"] == 5
    resumed = fit(tmp_path / "stopped", resume=tmp_path / "stopped" / "last.ckpt")
    assert_identical(resumed, fit(tmp_path / "whole"))


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=1)
    loader = make_loader(Points(), 4)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
    )
    with pytest.raises(ValueError, match="global batch size 2 then, 4 now"):
        trainer.fit(Learner(), loader, ckpt_path=tmp_path / "last.ckpt")


class Payload:
    """What a stranger's checkpoint might hold."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_checkpoints_run_no_code(tmp_path: Path) -> None:
    torch.save({"loops": Payload(tmp_path / "touched"), "state_dict": {}}, tmp_path / "hostile.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    io = AtomicCheckpointIO()
    for name, reason in {
        "hostile.ckpt": "cannot be read",
        "weights.ckpt": "--base",
        "none.ckpt": "no such checkpoint",
    }.items():
        with pytest.raises(WeightsError, match=reason):
            io.load_checkpoint(tmp_path / name, weights_only=False)
    with pytest.raises(WeightsError, match="download it first"):
        io.load_checkpoint("http://127.0.0.1/last.ckpt")
    assert not (tmp_path / "touched").exists()
