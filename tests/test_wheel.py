"""The package as pip installs it: what the wheel holds, and its commands in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"ldm", "cldm", "annotator", "controlnet"}


def build(target: str, project: Path, folder: Path) -> Path:
    """The "wheel" or "sdist" of a project, built with the backend that pyproject.toml names."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, text=True, timeout=300)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def install(folder: Path, *what: str | Path) -> Path:
    """The programs of a new virtual environment with something in it; libraries are those of this process."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "libraries.pth").write_text("\n".join(libraries))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    offline = [
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--no-compile",
        "--disable-pip-version-check",
    ]
    subprocess.run([*pip, *offline, *what], check=True, capture_output=True, timeout=300)
    return folder / "bin"


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("environment"), wheel)


@pytest.fixture
def run(bin_folder, tmp_path):
    """Start an installed program in an empty folder, with nothing in its environment but empty places."""
    environment = {
        "HOME": str(tmp_path / "home"),
        "GRADIO_TEMP_DIR": str(tmp_path / "temporary"),
        "PATH": os.defpath,  # gradio's pydub does not start without one
    }
    empty = tmp_path / "empty"
    empty.mkdir()

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        command = [str(bin_folder / program), *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=empty, env=environment, **streams)

    return start


def output(process: subprocess.Popen[str], status: int = 0) -> str:
    text = process.communicate(timeout=300)[0]
    assert process.returncode == status, text
    return text


def test_a_wheel_holds_the_packages_and_all_that_git_tracks_of_their_data(wheel):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in held} == PACKAGES
    data = re.compile("models/|configs/|examples/|annotator/ckpts/")
    places = {name: f"controlnet/assets/{name}" if data.match(name) else name for name in tracked}
    ours = {name for name in tracked if data.match(name) or name.partition("/")[0] in PACKAGES}
    assert held == {places[name] for name in ours if (ROOT / name).exists()}
    assert {"LICENSE", "NOTICE", "METADATA"} <= {name.rpartition("/")[2] for name in names}


def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    for folder in ("sdist", "source", "wheel"):
        (tmp_path / folder).mkdir()
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = zipfile.ZipFile(build("wheel", source, tmp_path / "wheel"))
    assert {i.filename: i.CRC for i in again.infolist()} == {
        i.filename: i.CRC for i in zipfile.ZipFile(wheel).infolist()
    }


def test_nothing_of_the_checkout_is_in_site_packages(run):
    for name in ("config", "share", "page", "training", "models"):
        assert f"No module named '{name}'" in output(run("python", "-c", f"import {name}"), status=1)
    where = output(run("python", "-c", "import controlnet, ldm.files as f; print(f.ROOT, f.home())"))
    assert str(ROOT) not in where
    assert where.split()[0].endswith("site-packages/controlnet/assets")
    assert where.split()[1].endswith("home/.cache/controlnet")


def test_an_editable_installation_is_the_checkout(tmp_path):
    programs = install(tmp_path / "environment", "--editable", ROOT)
    where = "import controlnet.cli, ldm.files; print(controlnet.cli.__file__, ldm.files.ROOT)"
    process = subprocess.run(
        [programs / "python", "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [str(ROOT / "controlnet" / "cli.py"), str(ROOT)]


def test_help_lists_the_commands_and_each_has_its_own(run):
    from controlnet.cli import COMMANDS

    text = output(run("controlnet", "--help"))
    assert output(run("python", "-m", "controlnet", "--help")) == text
    assert re.findall(r"^    (\w+)  ", text, re.MULTILINE) == list(COMMANDS)
    assert output(run("controlnet", "models")).startswith("sd15 (missing): ")


def test_annotate_and_generate_run_on_the_embedded_model(run, tmp_path):
    examples = Path(
        output(run("python", "-c", "from controlnet.files import EXAMPLES; print(EXAMPLES)")).strip()
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(examples / "lake.png", photos)
    assert "1 annotated" in output(run("controlnet", "annotate", photos, tmp_path / "maps"))
    assert Image.open(tmp_path / "maps" / "labels" / "lake.png").size == (256, 256)
    quick = ("--prompt", "a white house by a lake", "--ddim-steps", 2, "--image-resolution", 64)
    text = output(
        run("controlnet", "generate", photos / "lake.png", tmp_path / "out", *quick, "--no-measure")
    )
    assert "1 of 1 done" in text
    assert Image.open(tmp_path / "out" / "lake.png").size == (64, 64)


def test_page_serves_the_embedded_model(run, tmp_path):
    process = run("python", "-u", "-m", "controlnet", "page", "--model", "tiny")
    try:
        lines = iter(process.stdout.readline, "")
        url = next(
            (found.group() for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line))), ""
        )
        assert url
        config = httpx.get(f"{url}/config").text
        assert "Model <b>tiny</b>" in config and "#title h1" in config  # of style.css
        lake = httpx.get(re.search(r'"url":"([^"]*/lake.png)"', config).group(1))  # an example
        (tmp_path / "lake.png").write_bytes(lake.content)
        client = Client(url, verbose=False, download_files=tmp_path / "answers")
        quick = {"ddim_steps": 1, "image_resolution": 256, "detect_resolution": 128}
        gallery = client.predict(
            handle_file(tmp_path / "lake.png"), prompt="a lake", api_name="/process", **quick
        )
        assert len(gallery) == 2
    finally:
        process.terminate()
        process.wait(30)
