"""Imports point down: each package knows those below it, and none above."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the lowest to the highest. A module imports its own layer and lower ones.
LAYERS = (
    "ldm",
    "cldm",
    "annotator",
    "controlnet",  # the package's own few lines
    "controlnet.files",
    "controlnet.lines",
    "controlnet.outputs",
    "controlnet.color_profiles",
    "controlnet.pictures",
    "controlnet.listing",
    "controlnet.weights",
    "controlnet.conditions",
    "controlnet.generation",
    "controlnet.training",
    "controlnet.annotate",
    "controlnet.evaluate",
    "controlnet.storybook",
    "controlnet.page",
    "controlnet.commands",
    "controlnet.cli",
    "controlnet.__main__",
)
# Not even downwards: detectors are of use without a model, only commands know the drawn world, and front ends
# do not know each other.
APART = {
    ("annotator", "cldm"),
    ("controlnet.page", "controlnet.storybook"),
    ("controlnet.commands", "controlnet.page"),
}


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in {layer.partition(".")[0] for layer in LAYERS}


def layer_of(module: str) -> str:
    """The longest layer that a module is in."""
    return max((layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")), key=len)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it; of ``from package import name`` what that may name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            module = (ROOT / Path(*node.module.split("."))).is_dir()
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if module else {node.module}
    return names


def faults(module: str, imported: set[str]) -> set[str]:
    """The imports of a module that the rules forbid, in words."""
    own = layer_of(module)
    return {
        f"{module} imports {name}"
        for name in imported
        if is_ours(name)
        and (LAYERS.index(layer_of(name)) > LAYERS.index(own) or (own, layer_of(name)) in APART)
    }


def test_every_module_of_controlnet_has_its_layer():
    modules = [module_of(path) for path in (ROOT / "controlnet").rglob("*.py")]
    assert [module for module in modules if layer_of(module) == "controlnet"] == ["controlnet"]


def test_packages_import_downwards_only():
    folders = {layer.partition(".")[0] for layer in LAYERS}
    modules = {module_of(path): path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert len(modules) > 100
    found = {fault for module, path in modules.items() for fault in faults(module, imports_of(path))}
    assert found == set()


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("ldm.util", "cldm.model"),
        ("cldm.model", "annotator.util"),
        ("cldm.model", "controlnet.files"),
        ("annotator.util", "cldm.model"),
        ("annotator.util", "controlnet.pictures"),
        ("controlnet.generation.jobs", "controlnet.page.app"),
        ("controlnet.training.run", "controlnet.storybook.dataset"),
        ("controlnet.evaluate.grid", "controlnet.storybook.cases"),
        ("controlnet.page.app", "controlnet.storybook.dataset"),
        ("controlnet.page.app", "controlnet.commands.generate"),
        ("controlnet.commands.generate", "controlnet.page.app"),
        ("controlnet.conditions.canny", "controlnet.generation.request"),
    ],
)
def test_the_rules_forbid(module, imported):
    assert faults(module, {imported}) == {f"{module} imports {imported}"}
    assert faults(module, {f"{module}_parts", "torch.nn", "controlled.page"}) == set()


def test_packages_do_not_know_the_scripts_at_the_root():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    paths = [
        path
        for folder in ("ldm", "cldm", "annotator", "controlnet")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found = {
        (str(path), name) for path in paths for name in imports_of(path) if name.partition(".")[0] in scripts
    }
    assert found == set()


def test_a_script_at_the_root_is_thin_over_one_front_end():
    for path in ROOT.glob("*.py"):
        text, names = path.read_text(encoding="utf-8"), imports_of(path)
        front_ends = {name for name in names if re.match(r"controlnet\.(commands|page)\b", name)}
        assert len(front_ends) <= (path.name != "predict.py"), path.name  # that is a front end itself
        others = {other.stem for other in ROOT.glob("*.py")} - {"config", "share", path.stem}
        assert not {name.partition(".")[0] for name in names} & others, path.name
        if path.name.startswith(("tool_", "gradio_")):
            assert len(text.splitlines()) <= 30, path.name


def imported_at_once(module: str, seen: set[str]) -> set[str]:
    """What comes along when a module is imported: not what only functions or type checkers import."""
    seen.add(module)
    file = ROOT / Path(*module.split("."))
    path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else ():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            for parent in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
                if parent not in seen:
                    imported_at_once(parent, seen)
    return seen


def test_the_page_answers_before_lightning_and_the_networks_are_imported():
    at_once = imported_at_once("controlnet.page.app", set())
    assert {"gradio", "torch", "controlnet.generation.generator", "cldm.assemble"} <= at_once
    slow = {"pytorch_lightning", "torchvision", "transformers", "open_clip", "diffusers", "cldm.cldm"}
    assert not slow & at_once
    assert "pytorch_lightning" in imported_at_once("cldm.cldm", set())


COMMANDS = ("annotate", "evaluate", "generate", "models", "train", "weights")


@pytest.mark.parametrize("module", ["tutorial_train", *(f"controlnet.commands.{name}" for name in COMMANDS)])
def test_options_are_read_before_what_takes_seconds_to_import(module):
    slow = {"pytorch_lightning", "torchmetrics", "torchvision", "transformers", "diffusers", "gradio"}
    assert not slow & imported_at_once(module, set())
