"""The benchmark compares like with like: at small size, our step and diffusers' are the same numbers."""

from __future__ import annotations

import re
import time

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

pytest.importorskip("diffusers", reason="the peer is not installed (extra `bench`)")

from benchmarks import vae
from benchmarks.measure import cpu_seconds, interleaved, peak_memory
from benchmarks.sampling_step import (
    CONFIG,
    Inputs,
    Ours,
    Peer,
    check_agreement,
    compare,
    make_peers,
    random_model,
    step_seconds,
)

CPU = torch.device("cpu")


def narrow_config() -> DictConfig:
    config = OmegaConf.load(CONFIG).model
    for part in (config.params.unet_config.params, config.params.control_stage_config.params):
        part.update(model_channels=32, num_res_blocks=1, context_dim=24, num_heads=4)
    return config


@pytest.fixture(scope="module")
def sides():
    config = narrow_config()
    model = random_model(config, CPU, torch.float32)
    return Ours(model, CPU), Peer(config, model, CPU)


def test_ours_and_diffusers_predict_the_same_from_the_same_tensors(sides):
    inputs = Inputs.random(64, 24, CPU, torch.float32)
    assert re.fullmatch(r"outputs differ by \d\.\de-0[6-9]", check_agreement(*sides, inputs))


def test_a_changed_weight_is_noticed(sides):
    ours, peer = sides
    inputs = Inputs.random(64, 24, CPU, torch.float32)
    weight = peer.controlnet.controlnet_mid_block.weight
    kept = weight.detach().clone()
    try:
        peer.controlnet.controlnet_mid_block.weight = torch.nn.Parameter(kept * 1.5)
        with pytest.raises(RuntimeError, match="differ"):
            check_agreement(ours, peer, inputs)
    finally:
        peer.controlnet.controlnet_mid_block.weight = weight


def test_openvino_takes_part_with_the_same_numbers(capsys):
    """A narrow model; conversion and compiling take seconds."""
    pytest.importorskip("openvino", reason="the peer is not installed (extra `bench`)")
    config = narrow_config()
    model = random_model(config, CPU, torch.float32)
    peers = make_peers(["diffusers", "openvino"], config, model, CPU, time.process_time)
    inputs = Inputs.random(64, 24, CPU, torch.float32)
    for peer in peers.values():
        peer.compile_for(inputs)
    compare(Ours(model, CPU), peers, inputs, repeats=1)
    told = capsys.readouterr().out
    for name in ("DIFFUSERS", "OPENVINO"):
        assert re.search(rf"^{name} ratio \d+\.\d\d x at 64, outputs differ by \d\.\de-0[5-9]", told, re.M), (
            told
        )


def test_a_peer_that_rounds_coarsely_is_compared_with_fp32(sides, monkeypatch):
    ours, peer = sides
    inputs = Inputs.random(64, 24, CPU, torch.float32)
    predict = peer.predict
    monkeypatch.setattr(peer, "exact", predict)
    monkeypatch.setattr(peer, "predict", lambda *arguments: 1.08 * predict(*arguments))
    told = check_agreement(ours, peer, inputs)
    assert re.fullmatch(
        r"outputs differ by 7\.4e-02; from fp32 ours by \d\.\de-0[6-9], the peer's by 8\.0e-02", told
    )
    monkeypatch.setattr(peer, "exact", lambda *arguments: 1.01 * predict(*arguments))
    with pytest.raises(RuntimeError, match=r"ours by 9\.9e-03.* more than 1\.0e-04"):
        check_agreement(ours, peer, inputs)


def test_both_sides_report_the_time_of_a_step(sides):
    inputs = Inputs.random(64, 24, CPU, torch.float32)
    times = interleaved(
        {str(i): lambda s=side: step_seconds(s.sample, inputs, 1) for i, side in enumerate(sides)}, 2
    )
    assert [len(t) for t in times.values()] == [2, 2]
    assert all(0 < t < 60 for side in times.values() for t in side)


def test_peak_memory_sees_what_was_held_and_released():
    with peak_memory(CPU) as memory:
        torch.ones(64 * 2**20 // 4).sum()
    if memory.peak == 0:
        pytest.skip("this system does not tell a process its peak memory")
    assert 60 * 2**20 < memory.peak < 200 * 2**20


def test_the_vaes_are_compared_on_the_same_numbers(capsys):
    config = OmegaConf.load(CONFIG).model.params.first_stage_config
    config.params.ddconfig.update(ch=32, num_res_blocks=1)
    ratios = vae.compare_vae(config, 32, CPU, torch.float32, cpu_seconds, 1)
    assert set(ratios) == {"decode", "encode"} and min(ratios.values()) > 0
    assert "VAE decode ratio" in capsys.readouterr().out
