"""The benchmark of a training step compares what it says it compares."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_training import write_model

from benchmarks.train_step import BASELINE, WAYS, TrainStep, run, table


def test_every_way_trains_the_same(tmp_path: Path) -> None:
    results = run(64, 1, 1, torch.device("cpu"), write_model(tmp_path / "model.yaml"))
    assert results.keys() == WAYS.keys()
    assert all(result["error"] <= 1e-4 and result["seconds"] > 0 for result in results.values())
    assert table(results).count("\n") == len(WAYS)


def test_the_ways_differ_in_what_they_compute(tmp_path: Path) -> None:
    bench = TrainStep(64, 1, torch.device("cpu"), write_model(tmp_path / "model.yaml"))
    decoder = bench.model.model.diffusion_model.output_blocks
    calls = {"vae": 0, "control": 0, "decoder": 0}

    def count(name: str) -> None:
        calls[name] += 1

    bench.model.first_stage_model.quant_conv.register_forward_hook(lambda *_: count("vae"))
    bench.model.control_model.middle_block[0].in_layers.register_forward_hook(lambda *_: count("control"))
    decoder[0][0].in_layers.register_forward_hook(lambda *_: count("decoder"))
    expected = {
        BASELINE: (1, 2, 2, True),
        "as the original, fused AdamW": (1, 2, 2, True),
        "frozen, all checkpointed": (1, 2, 2, False),
        "frozen, control checkpointed": (1, 2, 1, False),
        "frozen": (1, 1, 1, False),
        "frozen, cached": (0, 1, 1, False),
    }
    for name, way in WAYS.items():
        calls.update(vae=0, control=0, decoder=0)
        assert all(gradient.abs().sum() > 0 for gradient in bench.gradients(way).values()), name
        has_gradients = all(parameter.grad is not None for parameter in decoder.parameters())
        assert (*calls.values(), has_gradients) == expected[name], name
