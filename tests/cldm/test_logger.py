"""ImageLogger: every argument is honoured, and training's random numbers stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from cldm.logger import ImageLogger


class Painter(pl.LightningModule):
    """Learns nothing; its pictures are noise and a ramp that leaves [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Dropout().eval()
        self.drawn: list[float] = []
        self.calls: list[dict[str, Any]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.drawn.append(torch.rand(()).item())
        return self.weight(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def log_images(self, batch: torch.Tensor, N: int = 4, **options: Any) -> dict[str, torch.Tensor]:
        self.calls.append({"training": self.training, "N": N, **options})
        ramp = torch.linspace(-2, 2, 8).expand(6, 3, 8, 8)
        return {"samples_cfg_scale_9.00": torch.randn(6, 3, 8, 8), "control": ramp, "note": "no picture"}


def fit(tmp_path: Path, logger: ImageLogger, steps: int = 10, **options: Any) -> Painter:
    torch.manual_seed(1)
    painter = Painter()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[logger],
        logger=TensorBoardLogger(tmp_path, name="log"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(painter, torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2))  # 4 batches an epoch
    return painter


def written(tmp_path: Path, name: str = "control") -> list[str]:
    paths = (tmp_path / "image_log" / "train").glob(f"{name}_*.png")
    return sorted(path.name.removeprefix(f"{name}_").removesuffix(".png") for path in paths)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["gs-000000_e-000000_b-000000", "gs-000006_e-000001_b-000002"]),
        ({"log_first_step": False}, ["gs-000006_e-000001_b-000002"]),
        (
            {"increase_log_steps": True, "log_first_step": False},
            [f"gs-{s:06}_e-{s // 4:06}_b-{s % 4:06}" for s in (1, 2, 4, 6)],
        ),
        ({"disabled": True}, []),
        ({"max_images": 0}, []),
        (
            {"batch_frequency": 3, "log_on_batch_idx": True},  # exactly as the original
            [f"gs-{s:06}_e-{s // 4:06}_b-{s % 4:06}" for s in (0, 3, 4, 7, 8)],
        ),
    ],
)
def test_when_pictures_are_written(tmp_path: Path, options: dict[str, Any], expected: list[str]) -> None:
    fit(tmp_path, ImageLogger(**{"batch_frequency": 6, **options}))
    assert written(tmp_path) == expected == written(tmp_path, "samples_cfg_scale_9.00")


def test_accumulated_batches_write_once_a_step(tmp_path: Path) -> None:
    fit(tmp_path, ImageLogger(2, log_first_step=False), steps=4, accumulate_grad_batches=2)
    assert written(tmp_path) == ["gs-000002_e-000001_b-000000"]


def test_what_is_written(tmp_path: Path) -> None:
    options = {"log_first_step": False, "log_images_kwargs": {"ddim_steps": 3}}
    painter = fit(tmp_path, ImageLogger(2, max_images=5, **options), steps=5)
    assert painter.calls == [{"training": False, "N": 5, "ddim_steps": 3}] * 2
    path = tmp_path / "image_log" / "train" / "control_gs-000002_e-000000_b-000002.png"
    picture = np.asarray(Image.open(path))
    assert picture.shape == (
        2 * 10 + 2,
        4 * 10 + 2,
        3,
    )  # four of five pictures in the first row, two pixels between
    tile = picture[2:10, 2:10, 0].astype(float) / 255 * 2 - 1
    np.testing.assert_allclose(tile, np.linspace(-2, 2, 8).clip(-1, 1)[None].repeat(8, 0), atol=0.005)
    assert list((tmp_path / "log").rglob("events.out.tfevents.*"))

    fit(tmp_path, ImageLogger(2, rescale=False, **options), steps=3)
    tile = np.asarray(Image.open(path))[2:10, 2:10, 0] / 255
    np.testing.assert_allclose(tile, np.linspace(-2, 2, 8).clip(0, 1)[None].repeat(8, 0), atol=0.005)

    first, second = ImageLogger(clamp=False), ImageLogger()
    assert first.make_images(painter, None)["control"].abs().max() == 2
    assert second.make_images(painter, None)["control"].abs().max() == 1


def test_training_is_untouched(tmp_path: Path) -> None:
    without = fit(tmp_path / "without", ImageLogger(disabled=True))
    painter = fit(tmp_path / "with", ImageLogger(2))
    assert painter.drawn == without.drawn
    assert painter.training and not painter.frozen.training  # parts in eval mode stay so

    samples = [(tmp_path / "with" / "image_log" / "train").glob("samples_*_gs-00000[24]*.png")]
    assert len({path.read_bytes() for found in samples for path in found}) == 1  # the same noise each time


def test_a_frequency_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="disabled=True"):
        ImageLogger(batch_frequency=0)
