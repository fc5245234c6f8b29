"""A resumed run heeds other settings of the learning rate and of the average, and says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_settings

from controlnet.training.run import train
from controlnet.training.settings import Settings

STEPS = 4


def resumed(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of a run that changes its settings after two of four steps."""
    train(tiny_settings(folder, **{"max_steps": 2, **then}))
    train(tiny_settings(folder, **{"max_steps": STEPS, **now}, resume="last"))
    return last(tiny_settings(folder))


def last(settings: Settings) -> dict[str, Any]:
    return torch.load(settings.last_checkpoint, weights_only=True)


def rate(checkpoint: dict[str, Any]) -> float:
    """That of the next step."""
    return checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.mark.parametrize(
    ("then", "now", "wanted", "said"),
    [
        ({}, {"learning_rate": 5e-4}, 5e-4, "learning_rate was 0.001 and is 0.0005 now: the run goes on at"),
        ({}, {"warmup_steps": 8}, 1e-3 * 5 / 8, "warmup_steps was 0 and is 8 now: the run goes on at"),
        ({"warmup_steps": 8}, {}, 1e-3, "at a learning rate of 0.001, and not of 0.000375."),
        (
            {"warmup_steps": 8},
            {"warmup_steps": 10, "learning_rate": 1e-2},
            5e-3,
            "warmup_steps was 8 and is 10",
        ),
        ({"cosine_decay": True}, {"cosine_decay": True, "max_steps": 4}, 0.0, "its last step was 2 and is 4"),
    ],
    ids=["rate", "a warmup", "no warmup", "both", "a later end"],
)
def test_another_rate_counts_from_where_the_run_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, then: dict, now: dict, wanted: float, said: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="controlnet.training"):
        checkpoint = resumed(tmp_path, then, now)
    assert rate(checkpoint) == pytest.approx(wanted)
    assert said in caplog.text


def test_the_settings_of_then_change_nothing_and_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("parts", "whole"):
        (tmp_path / name).mkdir()
    options: dict[str, Any] = {"warmup_steps": 3, "ema": 0.5}
    with caplog.at_level(logging.WARNING, logger="controlnet.training"):
        checkpoint = resumed(tmp_path / "parts", options, options)
    assert not caplog.text
    whole = tiny_settings(
        tmp_path / "whole", data=str(tmp_path / "parts" / "circles"), max_steps=STEPS, **options
    )
    train(whole)
    expected = last(whole)
    for kind in ("state_dict", "current_model_state"):
        assert all(torch.equal(checkpoint[kind][name], tensor) for name, tensor in expected[kind].items())
    assert rate(checkpoint) == rate(expected)


def test_without_its_average_a_run_goes_on_from_the_weights_of_the_last_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("plain", "averaged"):
        (tmp_path / name).mkdir()
    plain = tiny_settings(tmp_path / "plain", max_steps=STEPS)
    train(plain)
    with caplog.at_level(logging.WARNING, logger="controlnet.training"):
        checkpoint = resumed(tmp_path / "averaged", {"ema": 0.9, "data": plain.data}, {"data": plain.data})
    assert "ema was on and is off now" in caplog.text
    assert "current_model_state" not in checkpoint
    assert all(torch.equal(checkpoint["state_dict"][k], v) for k, v in last(plain)["state_dict"].items())
