"""Where files are looked for: the project's own folder first, then the folder of what is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotator.util import annotator_ckpts_path
from ldm import files


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The project's own folder, and another that ``CONTROLNET_HOME`` names."""
    monkeypatch.setattr(files, "ROOT", tmp_path / "project")
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path / "home"))
    return tmp_path / "project", tmp_path / "home"


def test_the_best_file_that_is_there_is_found_and_in_the_projects_folder_first(folders):
    project, home = folders
    names = ("models/a.safetensors", "models/a.pth")
    assert files.find_file(*names) == home / "models/a.pth"  # where it is to be put
    for name in reversed(names):
        for folder in (home, project):  # each better than all before
            assert put(folder / name) == files.find_file(*names)


def test_downloads_go_to_the_checkout_unless_another_place_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CONTROLNET_HOME", raising=False)
    assert files.home() == files.ROOT == Path(__file__).resolve().parents[2]
    monkeypatch.setenv("CONTROLNET_HOME", "~/weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.home() == tmp_path / "weights"


def test_an_installed_package_has_a_folder_of_the_users(folders, monkeypatch):
    monkeypatch.delenv("CONTROLNET_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.home() == Path("/home/somebody/.cache/controlnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert files.home() == Path("/caches/controlnet")


def test_the_detectors_weights_are_where_the_original_has_them():
    assert (Path(annotator_ckpts_path) / "upernet_tiny.safetensors").is_file()
    assert annotator_ckpts_path.endswith("annotator/ckpts")
