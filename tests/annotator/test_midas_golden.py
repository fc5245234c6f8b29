"""MiDaS at full size against the original's depth and maps, and against transformers' own DPT.

What the original's apps make of them is in ``tests/conditions/test_golden_apps.py``.
"""

from __future__ import annotations

from pathlib import Path

import golden_data
import numpy as np
import pytest
import torch

from annotator.midas import MidasDetector
from annotator.midas.network import DepthNetwork
from annotator.midas.released import to_transformers

KEYS = golden_data.released_keys("dpt_hybrid")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the released one, by the recipe."""
    state = {key: golden_data.recipe_tensor(key, shape) for key, (shape, _) in KEYS.items()}
    state["scratch.output_conv.4.bias"].fill_(3)
    path = tmp_path_factory.mktemp("dpt") / "dpt_hybrid-midas-501f0c75.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def detector(released: Path) -> MidasDetector:
    return MidasDetector(released, device="cpu")


def test_keys_are_those_of_the_released_file(released: Path):
    state, given = DepthNetwork.from_file(released).state_dict(), torch.load(released, weights_only=True)
    used = [key for key in KEYS if not key.startswith("pretrained.model.head.")]
    assert set(state) == set(used)
    assert all(torch.equal(state[key], given[key]) for key in used)


def test_depth_and_maps_of_a_picture_that_is_not_square(detector: MidasDetector):
    golden, _ = golden_data.load_golden("conditions")
    picture = golden["midas.image.0"].numpy()
    depth = torch.from_numpy(detector.depth(picture))[None]
    assert golden_data.relative_error(depth, golden["midas.depth.0"]) < 5e-5
    for ours, name in zip(detector(picture, bg_th=0.4), ("depth", "normal"), strict=True):
        original = golden[f"midas.{name}_image.0"].numpy()
        assert (ours.dtype, ours.shape) == (original.dtype, original.shape)
        off = np.abs(ours.astype(int) - original)
        assert np.mean(off == 0) >= 0.98
        assert np.mean(off <= 1) >= 0.999


def test_it_is_transformers_own_dpt_at_the_size_that_has_one(detector: MidasDetector, released: Path):
    from transformers import DPTConfig, DPTForDepthEstimation

    sizes = {"neck_hidden_sizes": [256, 512, 768, 768], "neck_ignore_stages": [0, 1]}
    with torch.device("meta"):
        peer = DPTForDepthEstimation(DPTConfig(is_hybrid=True, layer_norm_eps=1e-6, **sizes)).eval()
    missing, unexpected = peer.load_state_dict(
        to_transformers(torch.load(released, weights_only=True)), strict=False, assign=True
    )
    assert missing == []
    assert unexpected == ["pretrained.model.head.weight", "pretrained.model.head.bias"]
    x = torch.rand(1, 3, 384, 384) * 2 - 1
    with torch.inference_mode():
        ours, theirs = detector.model(x), peer(x).predicted_depth
    assert golden_data.relative_error(ours, theirs) < 5e-5
