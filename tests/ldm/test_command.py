"""The command line is named as it can be typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annotator.network import NetworkDetector
from controlnet.commands import command_name
from ldm.weights import WeightsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a virtual environment in it, which is not on the path."""
    programs = tmp_path / "project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr("ldm.command.PACKAGES", tmp_path / "project")
    return programs


def make_program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_not_installed(environment: Path, monkeypatch: pytest.MonkeyPatch):
    assert command_name() == ".venv/bin/python -m controlnet"
    monkeypatch.setenv("PATH", str(environment))
    assert command_name() == "python -m controlnet"


def test_not_installed_and_elsewhere(environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert command_name() == "project/.venv/bin/python project/controlnet"
    (tmp_path / "project" / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "docs")
    assert command_name() == f"{environment / 'python'} {tmp_path / 'project' / 'controlnet'}"
    monkeypatch.setattr("ldm.command.PACKAGES", tmp_path / "site-packages")
    assert command_name() == f"{environment / 'python'} -m controlnet"


def test_installed(environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    make_program(environment / "controlnet")
    assert command_name() == ".venv/bin/controlnet"
    monkeypatch.setenv("PATH", str(environment))
    assert command_name() == "controlnet"
    make_program(tmp_path / "other" / "controlnet")
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}{os.pathsep}{environment}")
    assert command_name() == ".venv/bin/controlnet", "the shell would find another environment's"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_name() == str(environment / "controlnet")


@pytest.mark.parametrize("place", [ROOT, ROOT / "docs", Path("/")])
def test_what_is_named_runs(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    command = f"{command_name()} weights list"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "sd15-seg" in result.stdout


def test_a_detector_without_weights_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))

    class Detector(NetworkDetector):
        checkpoint_names = ("ControlNetHED.pth",)

        def build(self, checkpoint):
            raise AssertionError

    with pytest.raises(WeightsError, match=r"Fetch them with: .+ weights fetch ControlNetHED$"):
        Detector().load()
