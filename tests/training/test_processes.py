"""`tutorial_train.py` in processes of its own: killed and resumed, and spread over two."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import metrics, tiny_settings

from controlnet.training.run import train
from controlnet.training.settings import Settings

ROOT = Path(__file__).parents[2]


def start(settings: Settings, *options: str) -> subprocess.Popen:
    """Begin a run of the script, with as many threads as the tests have."""
    config = Path(settings.output).with_suffix(".yaml")
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(settings)), config)
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "tutorial_train.py", "--config", str(config), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(settings: Settings) -> dict[str, torch.Tensor]:
    """Averaged and current weights of the last checkpoint."""
    state = torch.load(settings.last_checkpoint, weights_only=True)
    return {
        f"{kind} {key}": t for kind in ("state_dict", "current_model_state") for key, t in state[kind].items()
    }


def kill_after_saves(process: subprocess.Popen, checkpoint: Path, saves: int, delay: float) -> None:
    """kill -9, a moment after the checkpoint was replaced so many times."""
    last_seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    deadline = time.monotonic() + 300
    while saves and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        if seen != last_seen:
            last_seen, saves = seen, saves - 1
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_runs_resume_bit_for_bit(tmp_path: Path) -> None:
    options = {
        "max_steps": 24,
        "save_every": 3,
        "ema": 0.9,
        "cache_latents": True,
        "flip": 0.5,
        "empty_prompts": 0.3,
    }
    whole = tiny_settings(tmp_path, output=str(tmp_path / "whole"), **options)
    train(whole)

    killed = tiny_settings(tmp_path, output=str(tmp_path / "killed"), **options)
    moments = random.Random(3)
    for resume in ([], ["--resume"]):
        process = start(killed, *resume)
        kill_after_saves(process, killed.last_checkpoint, saves=2, delay=moments.uniform(0, 0.3))
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
    killed.resume = "last"
    assert torch.load(killed.last_checkpoint, weights_only=True)["global_step"] < killed.max_steps
    train(killed)

    got, expected = weights(killed), weights(whole)
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
    caches = [
        {path.name: path.read_bytes() for path in (run.folder / "cache").rglob("*.safetensors")}
        for run in (killed, whole)
    ]
    assert caches[0] == caches[1] != {}


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_with_half_the_batch_give_the_same_losses(tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_every": 100, "only_mid_control": True, "sd_locked": False, "flip": 0.5}
    one = tiny_settings(tmp_path, batch_size=4, output=str(tmp_path / "one"), **options)
    train(one)
    two = tiny_settings(tmp_path, batch_size=2, output=str(tmp_path / "two"), **options)
    process = start(two, "--devices", "2", "--strategy", "ddp")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    losses = metrics(two, "train/loss")
    assert len(losses) == 6 and len(set(losses)) == 6
    np.testing.assert_allclose(losses, metrics(one, "train/loss"), rtol=1e-4)
