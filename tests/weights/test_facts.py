"""What files say of themselves, and several controls over one base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_data import load_golden
from safetensors.torch import save_file
from weight_kinds import difference, in_diffusers_folder, pipeline
from weight_samples import (
    CONTEXT,
    CONTROL,
    FIRST,
    State,
    only,
    renamed,
    save,
    without,
    write_config,
)

from cldm.model import load_control, load_model
from ldm.layouts.recognise import recognise
from ldm.weights import WeightsError

# --- what a file says about itself ---


def v_by_key(s: State, f: Path) -> Path:
    return save({**s, "v_pred": torch.ones(())}, f / "a.safetensors")


def v_by_metadata(s: State, f: Path) -> Path:
    tensors = {key: tensor.contiguous().clone() for key, tensor in s.items()}
    save_file(tensors, f / "a.safetensors", {"modelspec.prediction_type": "v"})
    return f / "a.safetensors"


def v_by_yaml(s: State, f: Path) -> Path:
    (f / "a.yaml").write_text('model:\n  target: any.Model\n  params:\n    parameterization: "v"\n')
    return save(s, f / "a.ckpt")


def v_by_scheduler(s: State, f: Path) -> Path:
    path = pipeline(s, f)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    return path


@pytest.mark.parametrize("say", [v_by_key, v_by_metadata, v_by_yaml, v_by_scheduler])
def test_v_prediction_is_recognised(say: Callable, config: Path, state: State, tmp_path: Path, caplog):
    assert load_model(config, say(state, tmp_path)).parameterization == "v"
    assert f"the weights predict v, not eps as {config} has it" in caplog.text


def test_a_definition_of_v_stays_where_the_file_says_nothing(state: State, tmp_path: Path):
    config = write_config(tmp_path, parameterization="v")
    assert load_model(config, save(state, tmp_path / "a.ckpt")).parameterization == "v"


def test_zero_terminal_snr_gives_its_schedule(config: Path, state: State, tmp_path: Path):
    """As diffusers' ``rescale_betas_zero_snr``, but for the last step, whose inverse must be finite."""
    marked = {**state, "v_pred": torch.ones(()), "ztsnr": torch.ones(())}
    model = load_model(config, save(marked, tmp_path / "a.safetensors"))
    ours = model.alphas_cumprod
    roots = state["alphas_cumprod"].double().sqrt()
    theirs = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-7)
    assert 0 < ours[-1] < 1e-7
    assert model.parameterization == "v"
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


@pytest.mark.parametrize("say", ["name", "config", "yaml"])
def test_shuffle_controls_are_averaged_over_the_picture(say: str, state: State, tmp_path: Path, caplog):
    params = {"global_average_pooling": True} if say == "yaml" else {}
    config = write_config(tmp_path, **params)
    name = "control_v11e_sd15_shuffle.pth" if say == "name" else "c.pth"
    control = save(only(state, CONTROL), tmp_path / name)
    if say == "config":
        control = in_diffusers_folder(renamed(only(state, CONTROL), CONTROL, ""), tmp_path)
        (control / "config.json").write_text('{"global_pool_conditions": true}')
    model = load_model(config, save(without(state, CONTROL), tmp_path / "a.ckpt"), control=control)
    plain = load_model(write_config(tmp_path), save(state, tmp_path / "b.ckpt"))
    golden, _ = load_golden("unet_v15")
    inputs = [golden[key] for key in ("x", "hint", "t", "context")]
    with torch.no_grad():
        pooled, full = model.control_model(*inputs), plain.control_model(*inputs)
        cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]]}
        assert model.apply_model(golden["x"], golden["t"], cond).shape == golden["x"].shape
    for a, b in zip(pooled, full, strict=True):
        torch.testing.assert_close(a, b.mean(dim=(2, 3), keepdim=True))
    assert ("taken for a shuffle control" in caplog.text) == (say != "yaml")


def test_controls_of_one_base(config: Path, state: State, tmp_path: Path):
    """The base is there once; a condition names the control that steers it."""
    other = {key: -tensor for key, tensor in only(state, CONTROL).items()}
    model = load_model(config, save(state, tmp_path / "a.ckpt"))
    network = load_control(config, save(other, tmp_path / "other.pth"), dtype=torch.float32)
    peer = load_model(config, save({**state, **other}, tmp_path / "b.ckpt"))
    golden, _ = load_golden("unet_v15")
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]]}
    step = (golden["x"], golden["t"])
    with torch.no_grad():
        own = model.apply_model(*step, cond)
        swapped = model.apply_model(*step, model.prepare_condition({**cond, "control_model": network}))
        assert torch.equal(swapped, peer.apply_model(*step, cond))
        assert torch.equal(model.apply_model(*step, cond), own)
    assert not torch.equal(swapped, own)


def test_a_difference_alone_needs_its_base(config: Path, state: State, tmp_path: Path):
    arguments, expected = difference(state, tmp_path)
    with pytest.raises(WeightsError, match="needs the weights of the base"):
        load_control(config, arguments["control"])
    network = load_control(config, arguments["control"], base=arguments["weights_path"])
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[CONTROL + key], rtol=0, atol=1e-6)


def test_half_the_numbers_half_the_memory(config: Path, state: State, tmp_path: Path):
    model = load_model(config, save(state, tmp_path / "a.ckpt"), dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.alphas_cumprod.dtype == torch.float32
    assert torch.equal(model.state_dict()[FIRST], state[FIRST].half())


def test_a_file_made_for_another_yaml_is_known_by_shapes(config: Path, state: State, tmp_path: Path):
    assert state[CONTEXT].shape[1] == 32
    kind = recognise(save({**state, CONTEXT: torch.zeros(32, 768)}, tmp_path / "a.ckpt"))
    parts = "UNet, VAE, text encoder, control"
    assert str(kind) == f"Stable Diffusion 1.x with a control ({parts}, the original's layout, float32)"
