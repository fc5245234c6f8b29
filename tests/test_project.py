"""The project as a whole: pins, the Makefile's environment, quiet imports, what is tracked, what the README
names.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ldm", "cldm", "annotator", "controlnet")
FRONT_ENDS = ("controlnet/page",)  # and the flat scripts: they may import gradio
REGISTERED_WITH_MMSEG = (
    "annotator.uniformer.backbone",
)  # imported by UniformerDetector when it is first called
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Libraries that are slow to import: a module may use them, but only once it is asked to work.
# (Lightning itself imports torchmetrics, and so the bare `transformers` and matplotlib.)
HEAVY = (
    "transformers.modeling_utils",
    "open_clip",
    "mmseg",
    "mmcv",
    "mmengine",
    "gradio",
    "diffusers",
    "pandas",
)


def pins(python: str) -> dict[str, str]:
    """Version by name of what requirements.lock installs with `python` on Linux; raises on a double pin."""
    marker_values = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux"}
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(marker_values):
            continue
        name = canonical(requirement.name)
        if name in found:
            raise ValueError(f"requirements.lock pins {name} twice with Python {python}")
        found[name] = str(requirement.specifier).removeprefix("==")
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# Pins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_all_that_pyproject_asks_for(python):
    project = project_table()
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    locked = pins(python)
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        version = locked.get(canonical(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock with Python {python}"
        assert requirement.specifier.contains(version), (
            f"requirements.lock has {version}, pyproject.toml {requirement}"
        )


def test_what_the_code_imports_is_declared():
    """A library that comes only because another one needs it may be gone with that one's next version. Only
    conversions of others' files may ask for more, and say so where it is missing.
    """
    others = ["cog", "h5py", "onnx", "protobuf"]
    declared = {canonical(Requirement(line).name) for line in [*project_table()["dependencies"], *others]}
    modules = [path for package in (*PACKAGES, *FRONT_ENDS) for path in (ROOT / package).rglob("*.py")]
    ours = {path.name for path in ROOT.iterdir() if path.is_dir()} | {path.stem for path in ROOT.glob("*.py")}
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in [*modules, *ROOT.glob("*.py")]
        for name in imported_by(path) - ours - sys.stdlib_module_names
        if not declared & {canonical(distribution) for distribution in distributions.get(name, [name])}
    }
    assert undeclared == set()


def imported_by(path: Path) -> set[str]:
    """First names of all absolute imports, wherever they stand in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("python", PYTHONS)
def test_one_opencv_and_no_compiled_extras_of_a_cuda_build(python):
    locked = pins(python)
    assert [name for name in locked if name.startswith("opencv")] == ["opencv-python"]
    assert not [name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_lock_is_nothing_but_exact_pins():
    exact = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?")
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    assert [line for line in lines if not exact.fullmatch(line)] == []


def test_conda_installs_the_same_pins():
    dependencies = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
    python = next(line for line in dependencies if str(line).startswith("python="))
    assert python.removeprefix("python=") in PYTHONS
    assert {"pip": ["--requirement requirements.lock"]} in dependencies


# make -------------------------------------------------------------------------------------------------------

# Stands in for both the Python that the user has and the one in .venv: logs its calls, and makes a copy of
# itself where it is asked for a virtual environment.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_once_and_again_only_when_the_lock_changes(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    lock, log, python = tmp_path / "requirements.lock", tmp_path / "log", tmp_path / "fake-python"
    lock.write_text("einops==0.8.2\n")
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def steps_of_make_test() -> list[str]:
        log.write_text("")
        environment = {**os.environ, "PYTHON": str(python), "LOG": str(log), "MAKEFLAGS": ""}
        subprocess.run(
            ["make", "test"], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60
        )
        kinds = {"-m venv": "venv", "-m pip install": "pip install", "-m pytest": "pytest"}
        return [
            kind
            for line in log.read_text().splitlines()
            for start, kind in kinds.items()
            if line.startswith(start)
        ]

    assert steps_of_make_test() == ["venv", "pip install", "pytest"]
    assert steps_of_make_test() == ["pytest"]

    newer = lock.stat().st_mtime + 100
    os.utime(lock, (newer, newer))
    assert steps_of_make_test() == ["pytest"], "a newer file time alone must not reinstall"

    lock.write_text("einops==0.8.3\n")
    os.utime(lock, (newer + 100, newer + 100))
    assert steps_of_make_test() == ["pip install", "pytest"]

    (tmp_path / ".venv/bin/python").unlink()
    assert steps_of_make_test() == ["venv", "pip install", "pytest"], "a broken environment must be made anew"


# Imports ----------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, json, sys
packages, front_ends, heavy, result = json.loads(sys.argv[1])
blame = {}
for name in packages:
    importlib.import_module(name)
    for library in heavy:
        if library in sys.modules:
            blame.setdefault(library, name)
for name in front_ends:
    importlib.import_module(name)
import torch
with open(result, "w") as file:
    json.dump({"heavy": blame, "cuda": torch.cuda.is_initialized()}, file)
"""


def modules_of(*packages: str) -> list[str]:
    files = [path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py")]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files)


def test_imports_are_quiet_and_light(tmp_path):
    """Every module and flat script, in one process: no output, no slow library, no CUDA."""
    late = {*REGISTERED_WITH_MMSEG, *modules_of(*FRONT_ENDS)}
    packages = [name for name in modules_of(*PACKAGES) if name not in late]
    assert {"ldm", "cldm", "annotator", "controlnet"} <= set(packages)
    front_ends = [
        *REGISTERED_WITH_MMSEG,
        *modules_of(*FRONT_ENDS),
        *sorted(path.stem for path in ROOT.glob("*.py")),
    ]
    result = tmp_path / "result.json"
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps([packages, front_ends, HEAVY, str(result)])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert (process.stdout, process.stderr) == ("", "")
    assert json.loads(result.read_text()) == {"heavy": {}, "cuda": False}


def test_scripts_for_the_original_find_share_and_config():
    names: dict = {}
    exec("from share import *\nimport config", names)
    assert names["config"].save_memory is False
    # The same names as the original's share.py.
    assert set(names) - {"__builtins__"} == {"config", "disable_verbosity", "enable_sliced_attention"}


# Files ------------------------------------------------------------------------------------------------------


def git(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_large_file_is_tracked():
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in git("ls-files").stdout.splitlines()
        if (ROOT / name).exists()
    }
    assert "LICENSE" in sizes
    assert {name: size for name, size in sizes.items() if size > 15e6} == {}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("models/control_sd15_seg.pth", True),
        ("models/v1-5-pruned.ckpt", True),
        ("models/model.safetensors", True),
        ("annotator/ckpts/upernet_global_small.pth", True),
        ("lightning_logs/version_0/metrics.csv", True),
        ("image_log/train/samples.png", True),
        ("outputs/one.png", True),
        (".venv/bin/python", True),
        ("models/tiny/model.safetensors", False),
        ("annotator/ckpts/upernet_tiny.safetensors", False),
        ("annotator/ckpts/unet_tiny.safetensors", False),
        ("annotator/ckpts/hed_tiny.safetensors", False),
        ("annotator/ckpts/depth_tiny.safetensors", False),
        ("tests/golden/unet_v15.safetensors", False),
    ],
)
def test_git_ignores_downloads_and_keeps_our_own_weights(path, ignored):
    assert git("check-ignore", "--quiet", "--no-index", path).returncode == (0 if ignored else 1)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_guides_name_only_files_that_exist(name):
    """Links, pictures, and what the commands run."""
    readme = (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme) if "://" not in link]
    run = re.findall(r"^(?:[\w./-]*python )?([\w/-]+\.py)\b", readme, re.MULTILINE)
    assert len(links) > 10 or name == "CHANGELOG.md"
    assert [path for path in [*links, *run] if not (ROOT / path).exists()] == []


def test_the_example_of_golden_data_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    with torch.no_grad():
        exec(compile(example, "CONTRIBUTING.md", "exec"), {})
