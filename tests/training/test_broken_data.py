"""Data that break in the middle of a run, or do not fit it: nothing is lost, and errors say what to mend."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from tiny_training import control_model, metrics, tiny_settings, write_model

import tutorial_train
from controlnet.training.data.dataset import ControlDataset
from controlnet.training.data.loader import make_loader
from controlnet.training.data.records import DataError
from controlnet.training.faults import faults_reported
from controlnet.training.make_fill50k import make_fill50k
from controlnet.training.run import train
from controlnet.training.settings import Settings
from ldm.weights import WeightsError


class Break(pl.Callback):
    """Cuts all pictures of a folder off when so many batches have been seen."""

    def __init__(self, folder: Path, batches: int):
        self.files = {path: path.read_bytes() for path in sorted(folder.glob("*.png"))}
        self.batches = batches

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            for path, content in self.files.items():
                path.write_bytes(content[:100])

    def mend(self) -> None:
        for path, content in self.files.items():
            path.write_bytes(content)


OPTIONS: dict[str, Any] = {"accumulate": 2, "max_steps": 4, "save_every": 1000, "ema": 0.5}


def weights_of(settings: Settings) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = torch.load(settings.last_checkpoint, weights_only=True)
    return {kind: checkpoint[kind] for kind in ("state_dict", "current_model_state")}


def assert_equal(got: dict[str, dict[str, torch.Tensor]], wanted: dict[str, dict[str, torch.Tensor]]) -> None:
    for kind, state in wanted.items():
        assert all(torch.equal(tensor, got[kind][key]) for key, tensor in state.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    settings = tiny_settings(tmp_path_factory.mktemp("unbroken"), **OPTIONS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests themselves: sums depend on it
    train(settings)
    torch.set_num_threads(threads)
    return weights_of(settings)


@pytest.mark.parametrize(
    ("batches", "step"), [(4, 2), (3, 1), (6, 3)], ids=["behind an epoch", "within a step", "behind a step"]
)
def test_a_picture_that_breaks_costs_nothing(
    tmp_path: Path, unbroken: dict[str, dict[str, torch.Tensor]], batches: int, step: int
) -> None:
    settings = tiny_settings(tmp_path, **OPTIONS)
    breaking = Break(tmp_path / "circles" / "target", batches)
    with pytest.raises(DataError) as error:
        train(settings, breaking)
    first, last = str(error.value).splitlines()[0], str(error.value).splitlines()[-1]
    assert first.startswith(str(tmp_path / "circles" / "target")) and "truncated" in first
    assert last == (
        f"The run ended at step {step}. Mend the file, then go on with --resume {settings.last_checkpoint}"
    )
    assert torch.load(settings.last_checkpoint, weights_only=True)["global_step"] == step

    breaking.mend()
    settings.resume = "last"
    train(settings)
    assert_equal(weights_of(settings), unbroken)


def test_a_validation_picture_that_breaks_mixes_no_average_into_the_weights(
    tmp_path: Path, unbroken: dict[str, dict[str, torch.Tensor]]
) -> None:
    make_fill50k(tmp_path / "val", 4, size=64, workers=1, progress=False)
    settings = tiny_settings(
        tmp_path, **{**OPTIONS, "max_steps": 9}, val=str(tmp_path / "val"), val_every=4, save_best=0
    )
    with pytest.raises(DataError, match=r"/val/target/.*truncated"):
        train(settings, Break(tmp_path / "val" / "target", 1))
    assert_equal(weights_of(settings), unbroken)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_alone_raises_the_pictures_own_error(tmp_path: Path, workers: int) -> None:
    tiny_settings(tmp_path)
    dataset = ControlDataset(tmp_path / "circles")
    path = dataset.records[3].target
    path.write_bytes(b"")
    with pytest.raises(DataError) as error:
        list(make_loader(dataset, 4, shuffle=False, workers=workers))
    assert str(error.value) == f"{path}: the file is empty"


def test_a_validation_set_of_one_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_settings(tmp_path)
    one = tmp_path / "val"
    one.mkdir()
    row = json.loads((tmp_path / "circles" / "prompt.json").read_text().splitlines()[0])
    row = {**row, **{name: str(tmp_path / "circles" / row[name]) for name in ("source", "target")}}
    (one / "prompt.json").write_text(json.dumps(row))
    settings = tiny_settings(tmp_path, val=str(one), val_every=1, save_best=0, max_steps=1)
    with caplog.at_level(logging.WARNING, logger="controlnet.training"):
        train(settings)
    assert f"{one} holds a single picture" in caplog.text
    assert len(metrics(settings, "val/loss")) == 1
    assert not metrics(settings, "val/control_gap")  # it would have been compared with itself


def odd_data(folder: Path) -> str:
    Image.new("RGB", (64, 50)).save(folder / "odd.png")
    row = {"source": "odd.png", "target": "odd.png", "prompt": ""}
    (folder / "prompt.json").write_text(json.dumps(row))
    return str(folder)


def noise_as_hint(folder: Path) -> str:
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    row = {"source": "noise.png", "target": "noise.png", "prompt": ""}
    (folder / "prompt.json").write_text(f"{json.dumps(row)}\n" * 4)
    return str(folder)


def larger(settings: Settings) -> str:
    node = control_model()
    node["params"]["control_stage_config"]["params"]["context_dim"] = 64
    node["params"]["unet_config"]["params"]["context_dim"] = 64
    return write_model(Path(settings.model).with_name("larger.yaml"), node)


def without_choices(path: Path) -> None:
    """A checkpoint as earlier versions wrote it."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["choices"]
    torch.save(checkpoint, path)


def test_checkpoints_of_earlier_versions_and_of_other_kinds_end_in_one_line(tmp_path: Path) -> None:
    first = tiny_settings(tmp_path, max_steps=1, save="control-only")
    train(first)
    with pytest.raises(WeightsError, match=r"not in this checkpoint .* settings of save"):
        train(tiny_settings(tmp_path, max_steps=2, save="whole", resume="last"))
    without_choices(first.last_checkpoint)
    with pytest.raises(WeightsError, match=r"last.ckpt: .* weights then, .* now; look at sd_locked"):
        train(tiny_settings(tmp_path, max_steps=2, save="control-only", resume="last", sd_locked=True))
    train(tiny_settings(tmp_path, max_steps=2, save="control-only", resume="last"))
    assert torch.load(first.last_checkpoint, weights_only=True)["global_step"] == 2


def test_data_and_settings_that_do_not_fit_end_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_settings(tmp_path, max_steps=1, output=str(tmp_path / "first"))
    train(first)
    common = f"--model {first.model} --base none --no-sd-locked --accelerator cpu --no-progress --workers 0"
    common += " --max-steps 2"
    for options, reason in {
        f"--data {first.data} --resolution 100": "multiple of 64, got 100",
        f"--data {first.data} --buckets": "buckets need a resolution",
        f"--data {odd_data(tmp_path)}": "1 pictures have sides that are no multiples of 64",
        f"--data {first.data} --output {first.output} --resume --batch-size 3": "batch size 2 then, 3 now",
        f"--data {first.data} --output {first.output} --resume --sd-locked": (
            r"^/.*last.ckpt: .* sd_locked was False and is True now\. .*--base\.$"
        ),
        f"--data {first.data} --output {first.output} --resume --only-mid-control": (
            "only_mid_control was False and is True now"
        ),
        f"--data {first.data} --output {first.output} --resume --optimizer muon": "adamw and is muon",
        f"--data {first.data} --output {first.output} --resume --model {larger(first)}": (
            "a checkpoint of another model: .* of another shape here"
        ),
        f"--data {noise_as_hint(tmp_path / 'noise')} --area-balance 0.5": (
            r"^A hint has \d+ colours; area_balance is for maps of flat colours"
        ),
        f"--data {first.data} --first-time-step 5000": "the model has 1000 time steps",
    }.items():
        arguments = [*common.split(), "--output", str(tmp_path / "out"), *options.split()]
        monkeypatch.setattr(sys, "argv", ["tutorial_train.py", *arguments])
        with pytest.raises(SystemExit, match=reason), faults_reported():
            tutorial_train.main()
