"""The line detector against the original: keys, network, decoding, and the hough app's control pictures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, released_keys
from torch import Tensor, nn

from annotator.mlsd import MLSDdetector, MobileV2_MLSD_Large
from annotator.util import HWC3, resize_image

GOLDEN, CASE = load_golden("mlsd")


class PointMaps(nn.Module):
    """A network that sees lines at given points: rows of y, x and the five channels there."""

    def __init__(self, points: Tensor):
        super().__init__()
        self.points = points

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2, x.shape[3] // 2
        maps = torch.zeros(1, 9, height, width)
        maps[:, 0] = -6
        for y, x, *values in self.points.tolist():
            maps[0, :5, int(y), int(x)] = torch.tensor(values)
        return maps


@pytest.fixture(scope="module")
def filled() -> MobileV2_MLSD_Large:
    return fill_by_recipe(MobileV2_MLSD_Large()).eval()


@pytest.fixture(scope="module")
def detector(filled: MobileV2_MLSD_Large, tmp_path_factory: pytest.TempPathFactory) -> MLSDdetector:
    """With the weights of the hough app's cases, read from a file."""
    state = {key: tensor.clone() for key, tensor in filled.state_dict().items()}
    state["block23.conv3.weight"] *= 40
    state["block23.conv3.bias"] *= 40
    path = tmp_path_factory.mktemp("mlsd") / "mlsd_large_512_fp32.pth"
    torch.save(state, path)
    return MLSDdetector(path, device="cpu")


def test_keys_are_those_of_the_released_file(filled: MobileV2_MLSD_Large):
    state = filled.state_dict()
    ours = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for key, tensor in state.items()
    }
    assert list(ours.items()) == list(released_keys("mlsd_large_512_fp32").items())


def test_network(filled: MobileV2_MLSD_Large):
    with torch.no_grad():
        assert relative_error(filled(GOLDEN["mlsd.x"]), GOLDEN["mlsd.y"]) <= 1e-5


def test_network_of_the_detector(detector: MLSDdetector):
    """BatchNorm folded, weights packed, only nine of sixteen maps."""
    with torch.inference_mode():
        maps = detector.model(GOLDEN["mlsd.x"])
    assert relative_error(maps, 40 * GOLDEN["mlsd.y"]) <= 1e-5


def test_lines_of_made_up_maps():
    detector = MLSDdetector(device="cpu")
    detector.model = PointMaps(GOLDEN["mlsd.points"])
    lines = detector.lines(np.zeros((512, 512, 3), np.uint8))
    assert lines.dtype == np.float64
    np.testing.assert_allclose(lines, GOLDEN["mlsd.lines"].numpy(), atol=1e-5)


@pytest.mark.parametrize("case", CASE["cases"], ids=lambda case: case["name"])
def test_control_pictures_of_the_hough_app(detector: MLSDdetector, case: dict[str, Any]):
    options = case["options"]
    if case["detector"] != "mlsd":
        detector = MLSDdetector(device="cpu")
        detector.model = PointMaps(GOLDEN[f"mlsd.points.{case['detector'].split()[-1]}"])
    picture = HWC3(GOLDEN[case["image"]].numpy())
    small = resize_image(picture, options["detect_resolution"])
    found = detector(small, options["value_threshold"], options["distance_threshold"])
    assert found.dtype == np.uint8
    assert found.shape == small.shape[:2]

    height, width = resize_image(picture, options["image_resolution"]).shape[:2]
    control = cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST)
    assert np.mean(control == GOLDEN[f"control.{case['name']}"].numpy()) >= case["tolerance"]["equal"]
