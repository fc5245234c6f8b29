"""The depth network's lesson: what its loss sees, what is saved, and a run that resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import resumed_exactly

from annotator.midas import MidasDetector
from controlnet.storybook.dataset import draw_scene
from controlnet.storybook.hints import DEPTH_RANGE
from controlnet.storybook.train_depth import (
    DepthScenes,
    aligned_error,
    depth_loss,
    load_network,
    new_network,
    save_network,
    train_depth,
)
from controlnet.training.data.dataset import Draw

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings():
    settings = OmegaConf.load(ROOT / "configs" / "train" / "tiny_depth.yaml")
    toy = {"sizes": [64, 32], "scenes": 64, "batch_size": 2, "max_steps": 6, "validate_every": 3}
    return OmegaConf.merge(settings, toy, {"validation_size": 64, "validation_scenes": 2, "save_every": 1})


def test_scenes_change_size_from_batch_to_batch_and_keep_their_depth():
    scenes = DepthScenes(5, 4, (64, 32), batch_size=2)
    assert [len(scenes[Draw(0, position)]["depth"]) for position in range(6)] == [64, 64, 32, 32, 64, 64]
    scene, mirrored = draw_scene(5, 64), set()
    for position in (0, 1, 4, 5, 8, 9, 12, 13):
        depth = scenes[Draw(0, position)]["depth"]
        mirrored.add(not np.array_equal(depth, scene.depth))
        assert any(np.array_equal(depth, other) for other in (scene.depth, scene.depth[:, ::-1]))
    assert mirrored == {False, True}
    item = DepthScenes(5, 4, (64,))[0]
    assert np.array_equal(item["picture"].transpose(1, 2, 0), scene.picture)
    assert np.array_equal(item["depth"], scene.depth)


def test_loss_and_measure_are_blind_to_scale_and_shift():
    depth, other = torch.rand(2, 3, 48, 48)
    assert aligned_error(5 * depth - 2, depth).max() < 1e-6
    assert torch.allclose(aligned_error(5 * other - 2, depth), aligned_error(other, depth), atol=1e-6)
    plain = depth_loss(2 * depth + 1, depth) - 0.1 * (depth + 1).mean()
    assert abs(plain) < 1e-5
    assert depth_loss(other, depth) > 1


def test_saved_depth_has_the_range_that_normals_need(settings, tmp_path):
    torch.manual_seed(0)
    network = new_network(**settings.network)
    save_network(network, tmp_path / "depth.safetensors")
    assert (tmp_path / "depth.safetensors").stat().st_size < 2e6
    picture = draw_scene(0, 64).picture
    with torch.no_grad():
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = network(x)[0] * DEPTH_RANGE
    depth = MidasDetector(tmp_path / "depth.safetensors", device="cpu").depth(picture)
    assert expected.std() > 0
    rounding = {"rtol": 0.01, "atol": 0.01 * float(expected.max())}  # of float16
    np.testing.assert_allclose(depth, expected.numpy(), **rounding)
    again = new_network(**settings.network)
    load_network(again, tmp_path / "depth.safetensors")
    with torch.no_grad():  # a lesson goes on from what was saved
        np.testing.assert_allclose(again(x)[0] * DEPTH_RANGE, expected, **rounding)


@pytest.mark.filterwarnings("ignore")
def test_the_lesson_resumes_exactly_and_is_measured(settings, tmp_path):
    resumed_exactly(train_depth, settings, tmp_path)
    assert "depth_error" in (tmp_path / "whole" / "metrics.csv").read_text()
