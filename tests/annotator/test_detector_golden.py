"""The detector at full size against the original's features, logits and maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import golden_data
import numpy as np
import pytest
import torch

from annotator.ade20k import colorize
from annotator.uniformer import DEFAULT_CONFIG, UniformerDetector


@pytest.fixture(scope="module")
def checkpoint(save_filled: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full_size") / "upernet_global_small.pth"
    save_filled(DEFAULT_CONFIG, path)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> UniformerDetector:
    detector = UniformerDetector(checkpoint, device="cpu")
    detector.load()
    return detector


def test_keys_are_those_of_the_released_file(checkpoint: Path):
    state = torch.load(checkpoint, weights_only=True, mmap=True)["state_dict"]
    ours = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for key, tensor in state.items()
    }
    assert ours == golden_data.released_keys("upernet_global_small")


@pytest.mark.parametrize("index", [0, 1])
def test_features_and_logits(detector: UniformerDetector, index: int):
    golden, _ = golden_data.load_golden("uniformer")
    with torch.inference_mode():
        features = detector.model.backbone(golden[f"x.{index}"])
        logits = detector.model.decode_head(features)
    for level, feature in enumerate(features):
        assert golden_data.relative_error(feature[:, :8], golden[f"feat{level}.{index}"]) < 1e-5
    assert golden_data.relative_error(logits, golden[f"logits.{index}"]) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_color_maps(detector: UniformerDetector, index: int):
    golden, _ = golden_data.load_golden("uniformer")
    labels = detector.labels(golden[f"image.{index}"].numpy())
    assert np.mean(labels == golden[f"label.{index}"].numpy()) >= 0.999
    assert np.mean(colorize(labels) == golden[f"color.{index}"].numpy()) >= 0.999
