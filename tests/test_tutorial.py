"""The tutorial's scripts: settings from constants, YAML and the command line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from tiny_training import write_model

import tutorial_train
from controlnet.training.faults import faults_reported
from controlnet.training.settings import Settings


def test_the_constants_are_the_originals() -> None:
    s = tutorial_train.settings
    assert (s.batch_size, s.logger_freq, s.learning_rate, s.sd_locked, s.only_mid_control, s.precision) == (
        4,
        300,
        1e-5,
        True,
        False,
        "32-true",
    )


def test_a_copy_of_the_tutorial_of_before_has_its_imports() -> None:
    from controlnet.training.run import TrainingData, faults_reported, make_model, make_trainer

    assert all(map(callable, (TrainingData, faults_reported, make_model, make_trainer)))


def test_the_command_line_overrules_yaml_and_that_the_script(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("batch_size: 8\nlearning_rate: 2.0e-5\nbase: null\nval: held_out\n")
    script = Settings(batch_size=2, base="a.ckpt", workers=7)
    options = "--learning-rate 0.5 --num_nodes 3 --no-sd-locked --val none --cache-latents --resume"
    s = script.from_command_line(["--config", str(config), *options.split()])
    assert s == dataclasses.replace(
        script,
        batch_size=8,
        base=None,
        learning_rate=0.5,
        num_nodes=3,
        sd_locked=False,
        val=None,
        cache_latents=True,
        resume="last",
    )
    assert script.from_command_line([]) == script


OF_OTHERS = (
    "hinted_scenes",
    "storybook",
    "storybook_crops",
    "tiny_depth",
    "tiny_detector",
    "tiny_second_detector",
    "tiny_text",
)  # data sets, and scripts of their own
CONFIGS = [path for path in sorted(Path("configs/train").glob("*.yaml")) if path.stem not in OF_OTHERS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_settings(path: Path) -> None:
    settings = Settings().from_yaml(path)
    assert Path(settings.model).is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch_sise: 8", "batch_sise"),
        ("batch_size: eight", "eight"),
        ("batch_size: 0", "at least 1"),
        ("precision: fp8", "32-true, 16-mixed, bf16-mixed"),
        ("cosine_decay: true", "max_steps"),
        ("{precision: 16-mixed, gradient_clip: 1.0}", "bf16-mixed"),
        ("{ema: 0.9, strategy: fsdp}", "fsdp"),
        ("batch_size: [", "run.yaml"),
    ],
)
def test_wrong_settings_are_named(
    tmp_path: Path, text: str, reason: str, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(SystemExit) as stop:
        Settings().from_command_line(["--config", str(config)])
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_checkpoint_to_resume_must_be_there(tmp_path: Path) -> None:
    settings = Settings(output=str(tmp_path))
    assert settings.resume_path() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        dataclasses.replace(settings, resume="last").resume_path()
    settings.last_checkpoint.parent.mkdir()
    settings.last_checkpoint.touch()
    assert dataclasses.replace(settings, resume="last").resume_path() == settings.last_checkpoint
    with pytest.raises(FileExistsError, match="--resume"):
        settings.resume_path()


def test_what_a_user_can_mend_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model.yaml")
    for options, reason in {
        f"--base {tmp_path}/none.ckpt": "none.ckpt",
        f"--base none --data {tmp_path}/nowhere": "make_fill50k",
    }.items():
        common = f"--model {model} --output {tmp_path}/out --accelerator cpu --no-progress"
        monkeypatch.setattr(sys, "argv", ["tutorial_train.py", *common.split(), *options.split()])
        with pytest.raises(SystemExit, match=reason), faults_reported():
            tutorial_train.main()
