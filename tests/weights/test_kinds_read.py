"""Every kind of file that is read: each gives exactly the weights that its makers meant."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from golden_data import load_golden, relative_error
from torch import nn
from weight_kinds import READ, READ_V21, of_type, with_extras
from weight_samples import State, cast, save

from cldm.model import load_control, load_model


def assert_weights(model: nn.Module, expected: State) -> None:
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", READ)
def test_what_people_have_is_read(name: str, config: Path, state: State, tmp_path: Path):
    arguments, expected = READ[name](state, tmp_path)
    model = load_model(config, **arguments)
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert_weights(model, expected)


def same_pictures(model: nn.Module, peer: nn.Module, version: str) -> None:
    """The same text embedding and the same step of the UNet."""
    golden, _ = load_golden(version)
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    with torch.no_grad():
        eps = [m.apply_model(golden["x"], golden["t"], cond) for m in (model, peer)]
        texts = [m.get_learned_conditioning(["a red house"]) for m in (model, peer)]
    assert torch.equal(*eps)
    assert torch.equal(*texts)


@pytest.mark.parametrize("name", READ_V21)
def test_sd_2_is_read(name: str, config_v21: Path, state_v21: State, tmp_path: Path):
    """What the text embedding never uses may be missing, so outputs are compared with the whole model's."""
    peer = load_model(config_v21, save(state_v21, tmp_path / "peer.safetensors"))
    model = load_model(config_v21, **READ_V21[name](state_v21, tmp_path).arguments)
    assert not any(tensor.is_meta for tensor in model.parameters())
    same_pictures(model, peer, "unet_v21")


@pytest.mark.parametrize(
    "name",
    ["original .pth", "diffusers pipeline", "control of diffusers, file", "control as difference (webui)"],
)
def test_what_was_read_computes_what_the_original_computed(
    name: str, config: Path, state: State, tmp_path: Path
):
    golden, _ = load_golden("unet_v15")
    if "difference" in name:
        state = {
            **state,
            "control_model.time_embed.0.weight": state["model.diffusion_model.time_embed.0.weight"],
        }
    model = load_model(config, **READ[name](state, tmp_path).arguments)
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    with torch.no_grad():
        eps = model.apply_model(golden["x"], golden["t"], cond)
    if "difference" not in name:  # whose dropped key is another weight
        assert relative_error(eps, golden["eps.apply"]) <= 1e-5
    else:
        peer = load_model(config, save(state, tmp_path / "peer.ckpt"))
        with torch.no_grad():
            assert relative_error(eps, peer.apply_model(golden["x"], golden["t"], cond)) <= 1e-5


def test_extra_keys_are_told_in_one_line(config: Path, state: State, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, logger="cldm.assemble")
    load_model(config, **with_extras(state, tmp_path).arguments)
    lines = [record.message for record in caplog.records if "not used" in record.message]
    assert len(lines) == 1
    assert "a.safetensors: 3 entries are not used (embedding_manager.embedder.transformer.x" in lines[0]


def test_float8_is_told(config: Path, state: State, tmp_path: Path, caplog):
    load_model(config, **of_type(torch.float8_e5m2)(state, tmp_path).arguments)
    assert "a.safetensors: weights of 8 bits (float8)" in caplog.text


def test_float8_of_a_control_alone_is_not_worth_a_word(config: Path, state: State, tmp_path: Path, caplog):
    control = {key: tensor for key, tensor in state.items() if key.startswith("control_model.")}
    load_control(config, save(cast(control, torch.float8_e4m3fn), tmp_path / "a.safetensors"))
    assert "8 bits" not in caplog.text
