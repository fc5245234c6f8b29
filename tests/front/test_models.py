"""Many controls over one base: which file steers what, and that each gives what a merged model gives."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from front.conftest import ModelOnDisk
from front.small_page import ColorDetector, draw

from cldm.model import load_model
from controlnet.generation.controls import Controls
from controlnet.generation.devices import ModelError
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import find_model, known_models
from controlnet.generation.options import add_model_arguments, control_argument, files_from_options
from controlnet.generation.request import Request, RequestError
from ldm.weights import read_state_dict, save_state_dict


@pytest.fixture(scope="module")
def canny_control(model_files: ModelOnDisk, tmp_path_factory) -> Path:
    """A control by itself, other than the small model's own."""
    state = read_state_dict(model_files.weights)
    control = {k: v * 1.2 for k, v in state.items() if k.startswith("control_model.")}
    path = tmp_path_factory.mktemp("controls") / "control_v11p_sd15_canny.safetensors"
    save_state_dict(control, path)
    return path


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def ask(condition: str) -> Request:
    return Request(draw(), "a house", ddim_steps=2, seed=1, condition=condition)


def test_a_control_on_the_command_line_steers_its_condition(model_files, canny_control):
    given = options(
        "--model", model_files.config, "--weights", model_files.weights, "--control", canny_control,
        "--detector-weights", model_files.weights, "--device", "cpu",
    )  # fmt: skip
    files = files_from_options(given, "canny")
    assert files.controls == {"canny": canny_control} and files.own == ("seg",)
    generator = load_generator(files, "cpu")
    generator.detectors = {"seg": ColorDetector()}
    with_own, with_canny = (generator.generate(ask(name)).pictures[0] for name in ("seg", "canny"))
    merged = Generator(
        load_model(model_files.config, model_files.weights, control=canny_control), {"seg": ColorDetector()},
        resolution=64,
    )  # fmt: skip
    own = Generator(
        load_model(model_files.config, model_files.weights), {"seg": ColorDetector()}, resolution=64
    )
    assert np.abs(with_canny.astype(int) - merged.generate(ask("canny")).pictures[0]).max() <= 1
    assert np.abs(with_own.astype(int) - own.generate(ask("seg")).pictures[0]).max() <= 1
    assert (with_canny != own.generate(ask("canny")).pictures[0]).any()


def test_the_base_is_held_once_and_few_controls_stay():
    loads: list[Path] = []

    def load(path: Path):
        loads.append(path)
        return torch.nn.Identity()

    files = {name: Path(name) for name in ("canny", "depth", "hed")}
    controls = Controls(files, load, own=("seg",), serves_all=False, keep=2)
    assert controls.network("seg") is None and not loads
    first = controls.network("canny")
    assert controls.network("canny") is first
    for name in ("depth", "canny", "hed", "canny", "depth"):
        controls.network(name)
    assert [path.name for path in loads] == ["canny", "depth", "hed", "depth"]
    with pytest.raises(
        RequestError, match="no control for hough; it can be steered by seg, canny, depth, hed"
    ):
        controls.network("hough")


def test_a_model_says_what_it_was_not_taught(model_files, generator):
    taught = Generator(
        generator.model,
        {"seg": ColorDetector()},
        resolution=64,
        controls=Controls(own=("seg",), serves_all=True),
    )
    assert "not by canny" in taught.generate(ask("canny")).remarks[-1]
    assert not taught.generate(ask("seg")).remarks


def test_the_file_says_its_condition(tmp_path):
    for name, condition in {
        "control_v11p_sd15_softedge.pth": "hed",
        "control_v11f1p_sd15_depth.safetensors": "depth",
        "control_sd15_mlsd.pth": "hough",
        "my_openpose_v2.safetensors": "openpose",
        "mine.safetensors": "canny",
    }.items():
        (tmp_path / name).touch()
        assert control_argument(str(tmp_path / name), "canny") == (condition, tmp_path / name), name
    assert control_argument(f"depth={tmp_path / 'mine.safetensors'}", "canny")[0] == "depth"
    with pytest.raises(ModelError, match="no condition 'sketch'"):
        control_argument(f"sketch={tmp_path / 'mine.safetensors'}", "canny")
    with pytest.raises(ModelError, match="no such file"):
        control_argument(str(tmp_path / "gone.pth"), "canny")


def test_released_files_are_found_by_condition(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    monkeypatch.setattr("controlnet.generation.models.MODELS", tmp_path / "models")
    (tmp_path / "models").mkdir()
    for name in (
        "cldm_v15.yaml",
        "control_sd15_canny.pth",
        "control_v11f1p_sd15_depth.pth",
        "v1-5-pruned.ckpt",
    ):
        (tmp_path / "models" / name).touch()
    files = known_models()["sd15"]
    assert files.weights.name == "control_sd15_canny.pth" and files.own == ("canny",)
    assert {name: path.name for name, path in files.controls.items()} == {
        "depth": "control_v11f1p_sd15_depth.pth"
    }
    assert find_model("sd15", condition="depth").conditions == ("canny", "depth")
    with pytest.raises(ModelError, match=r"no control for hed.*weights fetch control_sd15_hed"):
        find_model("sd15", condition="hed")
    (tmp_path / "models" / "control_sd15_canny.pth").unlink()
    files = known_models()["sd15"]
    assert files.weights.name == "v1-5-pruned.ckpt" and files.own == ()
