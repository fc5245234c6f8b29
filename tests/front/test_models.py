"""Many controls over one base: which file steers what, and that each gives what a merged model gives."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from front.conftest import ModelOnDisk
from front.small_page import ColorDetector, draw
from golden_data import released_keys
from weight_samples import save_empty

from cldm.model import load_model
from controlnet.commands import models
from controlnet.conditions import find_condition
from controlnet.generation.controls import Controls
from controlnet.generation.devices import ModelError
from controlnet.generation.generator import Generator
from controlnet.generation.loading import load_generator
from controlnet.generation.models import default_model, find_model, known_models
from controlnet.generation.options import add_model_arguments, control_argument, files_from_options
from controlnet.generation.request import Request, RequestError
from controlnet.page import app
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
    for name, conditions in {
        "control_v11p_sd15_softedge.pth": ["hed"],
        "control_v11f1p_sd15_depth.safetensors": ["depth"],
        "control_sd15_mlsd.pth": ["hough"],
        "control_v11p_sd15_scribble.pth": ["fake_scribble", "scribble", "scribble_interactive"],
        "my_openpose_v2.safetensors": ["openpose"],
        "mine.safetensors": ["canny"],
        "finished.safetensors": ["canny"],  # no hed
        "sd-controlnet-depth": ["depth"],
        "sd-controlnet-hed/diffusion_pytorch_model.safetensors": ["hed"],
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert control_argument(str(path), "canny") == dict.fromkeys(conditions, path), name
    assert list(control_argument(f"depth={tmp_path / 'mine.safetensors'}", "canny")) == ["depth"]
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
    (tmp_path / "models" / "control_v11f1p_sd15_depth.pth").unlink()
    mine = tmp_path / "mine.pth"
    files = find_model("auto", condition="canny", controls={"canny": mine})
    assert files.weights.name == "v1-5-pruned.ckpt" and files.controls == {"canny": mine}
    assert default_model("canny") == "tiny"  # a base without a control steers nothing


# Released files by their keys; of the weights nothing is read.


def put(folder: Path, name: str, part: str = "whole", version: str = "v15") -> Path:
    shapes = {key: shape for key, (shape, _dtype) in released_keys(f"cldm_{version}").items()}
    control = {key: shape for key, shape in shapes.items() if key.startswith("control_model.")}
    base = {key: shape for key, shape in shapes.items() if key not in control}
    return save_empty({"whole": shapes, "base": base, "control": control}[part], folder / name)


@pytest.fixture
def released(tmp_path, monkeypatch) -> Path:
    """A folder of downloaded weights with two controls of ControlNet 1.1."""
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    for name in ("control_v11p_sd15_canny.pth", "control_v11p_sd15_scribble.pth"):
        put(tmp_path / "models", name, "control")
    return tmp_path


def test_a_finetune_is_steered_by_what_is_there(released):
    """The condition that is to steer first comes first: over a base, its control is the one to load."""
    dream = put(released, "dream.safetensors", "base")
    files = find_model(str(dream), condition="scribble")
    assert (files.name, files.config.name, files.own) == ("dream", "cldm_v15.yaml", ())
    assert next(iter(files.controls)) == "scribble"
    assert set(files.controls) == {"canny", "scribble", "fake_scribble", "scribble_interactive"}
    with pytest.raises(ModelError, match=r"Model dream has no control for hough\. This command brings it"):
        find_model(str(dream), condition="hough")


def test_controls_of_another_version_are_not_lent(released):
    base = put(released, "sd21.safetensors", "base", "v21")
    mine = put(released, "mine.pth", "control", "v21")
    files = find_model(str(base), condition="canny", controls={"canny": mine})
    assert (files.config.name, files.controls) == ("cldm_v21.yaml", {"canny": mine})
    with pytest.raises(ModelError, match=r"no control for scribble\. Give a file with one: --control FILE$"):
        find_model(str(base), condition="scribble")


def test_a_whole_file_steers_by_what_its_name_says(released):
    whole = put(released, "my_canny.safetensors")
    files = find_model(str(whole), condition="canny")
    assert files.own == ("canny",) and "canny" not in files.controls
    assert find_model(str(put(released, "mine.safetensors")), condition="hough").own == ("hough",)


def test_models_says_what_files_were_recognised_as(released, capsys):
    dream, vae = put(released, "dream.safetensors", "base"), released / "vae.pt"
    torch.save({"decoder.conv_in.weight": torch.ones(1)}, vae)
    other = put(released, "sd21_depth.pth", "control", "v21")
    shuffle = put(released, "control_v11e_sd15_shuffle.pth", "control")
    arguments = ["--model", dream, "--vae", vae, "--embedding", vae, "--control", f"hed={shuffle}"]
    assert models.main([str(argument) for argument in [*arguments, "--control", other]]) == 1
    control, layout = "a ControlNet of Stable Diffusion", "the original's layout"
    expected = f"""
  model: dream.safetensors: Stable Diffusion 1.x (UNet, VAE, text encoder, {layout}, float16)
  control for canny: control_v11p_sd15_canny.pth: {control} 1.x ({layout}, float16)
  control for fake_scribble, scribble, scribble_interactive: control_v11p_sd15_scribble.pth: {control} 1.x \
({layout}, float16)
  control for hed: control_v11e_sd15_shuffle.pth: {control} 1.x ({layout}, float16, averaged over the picture)
  control for depth: sd21_depth.pth: cannot serve: this is {control} 2.x ({layout}, float16), and the model \
is Stable Diffusion 1.x
  VAE: vae.pt: a VAE ({layout}, float32)
  embedding, "vae" in prompts: vae.pt: cannot serve: this is a VAE ({layout}, float32), not an embedding; \
give it with --vae, beside a Stable Diffusion model
"""
    assert capsys.readouterr().out.partition("\n")[2] == expected[1:]
    assert models.main(["--model", str(dream)]) == 0
    assert models.main(["--model", str(vae)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {vae}: this is a VAE")


def test_the_page_says_what_files_were_recognised_as(released, small_model):
    dream = put(released, "<dream>.safetensors", "base")
    generator = Generator(small_model, name="dream", resolution=64, files=find_model(str(dream), check=False))
    note = app.model_note(generator, find_condition("canny"))
    assert "Model: **dream**, 64 pixels, in fp32." in note
    assert "model: <b>&lt;dream&gt;.safetensors</b>: Stable Diffusion 1.x (UNet" in note
    assert "control for canny: <b>control_v11p_sd15_canny.pth</b>: a ControlNet of" in note
    assert str(released) not in note
