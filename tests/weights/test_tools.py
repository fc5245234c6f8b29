"""The tools that convert weights: command lines as users type them, on real files of a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_data import load_golden, recipe_state, tiny_config
from omegaconf import OmegaConf
from torch import Tensor

from cldm.model import load_model
from controlnet.commands import add_control as tool_add_control
from controlnet.commands import merge_control as tool_merge_control
from controlnet.commands import transfer_control as tool_transfer_control
from ldm.util import instantiate_from_config
from ldm.weights import read_state_dict, save_state_dict

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sd() -> dict[str, Tensor]:
    """A tiny Stable Diffusion without control."""
    model = instantiate_from_config(tiny_config(load_golden("unet_v15")[1]))
    state = {**model.state_dict(), **recipe_state(dict(model.named_parameters()))}
    return {key: tensor for key, tensor in state.items() if not key.startswith("control_model.")}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    OmegaConf.save({"model": tiny_config(load_golden("unet_v15")[1])}, tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


def add(*arguments: object) -> int:
    return tool_add_control.main([str(argument) for argument in arguments])


def transfer(base: Path, control: Path, target: Path, output: Path, config: Path) -> int:
    paths = ["--base", base, "--control", control, "--target", target, "--output", output]
    return tool_transfer_control.main([*map(str, paths), "--config", str(config)])


def merge(base: Path, control: Path, output: Path, config: Path) -> int:
    paths = ["--base", base, "--control", control, "--output", output, "--config", config]
    return tool_merge_control.main([*map(str, paths)])


@pytest.mark.parametrize("source", ["sd.ckpt", "sd.safetensors", "sd.pth"])
@pytest.mark.parametrize("output", ["ini.ckpt", "ini.safetensors"])
def test_a_control_is_added(
    sd: dict[str, Tensor],
    config: Path,
    source: str,
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if source == "sd.ckpt":
        torch.save({"state_dict": sd, "global_step": 3}, tmp_path / source)
    else:
        save_state_dict(sd, tmp_path / source)
    assert add(tmp_path / source, tmp_path / output, "--config", config) == 0
    printed = capsys.readouterr()
    assert "control_model.zero_convs.0.0.weight" in printed.out
    assert "control_model.input_hint_block.0.weight" in printed.out
    assert "time_embed" not in printed.out
    assert f"{output}: 100%" in printed.err or "it/s" in printed.err or "B/s" in printed.err, "a progress bar"

    state = read_state_dict(tmp_path / output)
    for key, tensor in sd.items():
        assert torch.equal(state[key], tensor)
        copy = key.replace("model.diffusion_model.", "control_model.")
        if copy in state and copy != key:
            assert torch.equal(state[copy], tensor)
    assert not state["control_model.zero_convs.0.0.weight"].any()
    assert not state["control_model.input_hint_block.14.weight"].any()
    assert state["control_model.input_hint_block.0.weight"].any()
    load_model(config, tmp_path / output)


def test_a_new_control_steers_nothing_yet(sd: dict[str, Tensor], config: Path, tmp_path: Path):
    """Zero convolutions: with the control or without it, the same picture."""
    save_state_dict(sd, tmp_path / "sd.safetensors")
    assert add(tmp_path / "sd.safetensors", tmp_path / "ini.ckpt", "--config", config) == 0
    model = load_model(config, tmp_path / "ini.ckpt")
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), [torch.randn(1, 77, 32)]
    with torch.no_grad():
        steered = model.apply_model(x, t, {"c_concat": [torch.rand(1, 3, 64, 64)], "c_crossattn": context})
        assert torch.equal(steered, model.apply_model(x, t, {"c_concat": None, "c_crossattn": context}))


def test_the_originals_command_works(sd: dict[str, Tensor], config: Path, tmp_path: Path):
    """Two positional arguments, from any folder; a model of no known definition is told in one line."""
    save_state_dict(sd, tmp_path / "sd.ckpt")
    command = [sys.executable, str(REPOSITORY / "tool_add_control.py"), "sd.ckpt", "ini.ckpt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: sd.ckpt: this is a model with text embeddings 32 wide (UNet, VAE, "
    )
    assert "none of the definitions cldm_v15.yaml, cldm_v21.yaml" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "ini.ckpt").exists()


def test_nothing_is_overwritten_without_force(sd: dict[str, Tensor], config: Path, tmp_path: Path, capsys):
    source, output = tmp_path / "sd.ckpt", tmp_path / "ini.ckpt"
    save_state_dict(sd, source)
    output.write_bytes(b"precious")
    assert add(source, output, "--config", config) == 1
    assert transfer(source, source, source, output, config) == 1
    assert merge(source, source, output, config) == 1
    errors = capsys.readouterr().err
    assert errors.count("ini.ckpt: exists already; give another name, or --force") == 3
    assert output.read_bytes() == b"precious"
    assert add(source, output, "--config", config, "--force") == 0
    assert len(read_state_dict(output)) > len(sd)
    assert add(output, output, "--config", config, "--force") == 0, "also onto itself"
    assert len(read_state_dict(output)) > len(sd)


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        ("nowhere.ckpt", "out.ckpt", "nowhere.ckpt: there is no such file"),
        ("sd.ckpt", "out.txt", "unknown suffix '.txt'"),
        ("sd.ckpt", "missing/out.ckpt", "does not exist"),
        ("lora.safetensors", "out.ckpt", "this is a LoRA (float32), not a model"),
        ("page.ckpt", "out.ckpt", "page.ckpt: this is a web page"),
    ],
)
def test_user_errors_are_one_line(
    sd: dict[str, Tensor], config: Path, source: str, output: str, says: str, tmp_path: Path, capsys
):
    save_state_dict({"betas": torch.ones(2)}, tmp_path / "sd.ckpt")
    save_state_dict({"lora_unet_x.lora_up.weight": torch.ones(2)}, tmp_path / "lora.safetensors")
    (tmp_path / "page.ckpt").write_text("<html>")
    before = sorted(tmp_path.iterdir())
    assert add(tmp_path / source, tmp_path / output, "--config", config) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_missing_arguments_are_a_usage_error(capsys):
    for tool in (tool_add_control, tool_transfer_control, tool_merge_control):
        with pytest.raises(SystemExit) as caught:
            tool.main([])
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        tool_transfer_control.main(["--help"])
    assert caught.value.code == 0


def test_a_control_is_transferred_and_merged(sd: dict[str, Tensor], config: Path, tmp_path: Path, capsys):
    base, target, control = tmp_path / "sd.ckpt", tmp_path / "anime.safetensors", tmp_path / "seg.pth"
    save_state_dict(sd, base)
    assert add(base, control, "--config", config) == 0
    trained = {
        key: t + 0.5 if key.startswith("control_") else t for key, t in read_state_dict(control).items()
    }
    save_state_dict(trained, control)
    anime = {
        key: t + 1 if t.is_floating_point() else t
        for key, t in sd.items()
        if not key.startswith("first_stage")
    }
    save_state_dict(anime, target)

    capsys.readouterr()
    assert transfer(base, control, target, tmp_path / "out.safetensors", config) == 0
    printed = capsys.readouterr().out
    lacking = sum(key.startswith("first_stage_model.") for key in sd)
    assert f"anime.safetensors lacks {lacking} keys of the VAE; they were taken from {control}" in printed
    state = read_state_dict(tmp_path / "out.safetensors")
    assert state.keys() == trained.keys()
    key = "control_model.time_embed.0.weight"
    torch.testing.assert_close(state[key], trained[key] + 1)
    assert torch.equal(
        state["control_model.zero_convs.0.0.weight"], trained["control_model.zero_convs.0.0.weight"]
    )
    assert torch.equal(
        state["model.diffusion_model.out.0.weight"], anime["model.diffusion_model.out.0.weight"]
    )
    load_model(config, tmp_path / "out.safetensors")

    alone = {key: tensor for key, tensor in trained.items() if key.startswith("control_model.")}
    save_state_dict(alone, tmp_path / "alone.safetensors")
    assert merge(base, tmp_path / "alone.safetensors", tmp_path / "whole.ckpt", config) == 0
    assert f"{len(alone)} tensors of the control joined {base}" in capsys.readouterr().out
    whole = read_state_dict(tmp_path / "whole.ckpt")
    assert whole.keys() == trained.keys()
    assert all(torch.equal(whole[key], trained[key]) for key in whole)

    assert transfer(base, base, target, tmp_path / "no.ckpt", config) == 1
    assert merge(control, base, tmp_path / "no.ckpt", config) == 1
    errors = capsys.readouterr().err
    assert errors.count("not a control; give it as the model") == 2
    assert not (tmp_path / "no.ckpt").exists()
