"""Canny and HED against the original: keys, maps, thinned maps, and the control pictures of three apps."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, released_keys

from annotator.canny import CannyDetector
from annotator.hed import ControlNetHED_Apache2, HEDdetector, nms
from annotator.hed.inference import side_maps
from annotator.util import HWC3, resize_image

GOLDEN, _ = load_golden("hed")
APPS, APPS_CASE = load_golden("apps")
CASES = [case for case in APPS_CASE["cases"] if case["hint"] in ("canny", "hed", "fake_scribble")]


@pytest.fixture(scope="module")
def network() -> ControlNetHED_Apache2:
    """The network of the golden maps."""
    network = fill_by_recipe(ControlNetHED_Apache2()).requires_grad_(False)
    network.norm.fill_(120)
    for block in network.blocks:
        block.projection.weight *= 0.02
    return network


@pytest.fixture(scope="module")
def detector(network: ControlNetHED_Apache2, tmp_path_factory: pytest.TempPathFactory) -> HEDdetector:
    path = tmp_path_factory.mktemp("hed") / "network-bsds500.pth"  # the name in the original's own address
    torch.save(network.state_dict(), path)
    return HEDdetector(path, device="cpu")


def test_keys_are_those_of_the_released_file(network: ControlNetHED_Apache2):
    state = network.state_dict()
    ours = {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for key, tensor in state.items()
    }
    assert list(ours.items()) == list(released_keys("ControlNetHED").items())


@torch.no_grad()
def test_what_makes_the_network_fast_leaves_the_numbers(
    network: ControlNetHED_Apache2, detector: HEDdetector
):
    """Against the plain network in float64."""
    picture = GOLDEN["image.0"].permute(2, 0, 1)[None]
    exact = fill_by_recipe(ControlNetHED_Apache2()).double()
    exact.load_state_dict(network.state_dict())
    for wanted, plain, fast in zip(
        exact(picture.double()),
        network(picture.float()),
        side_maps(detector.model, picture.float()),
        strict=True,
    ):
        assert relative_error(plain, wanted) < 1e-5
        assert relative_error(fast, wanted) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
def test_maps_and_thinned_maps(detector: HEDdetector, index: int):
    wanted = GOLDEN[f"hed.{index}"].numpy()
    assert len(np.unique(wanted)) > 30, "a flat map would prove nothing here"
    assert np.mean(detector(GOLDEN[f"image.{index}"].numpy()) == wanted) >= 0.999
    np.testing.assert_array_equal(nms(wanted, 105, 1.5), GOLDEN[f"hed_nms.{index}"].numpy())


@pytest.mark.parametrize("index", [0, 1])
def test_canny(index: int):
    edges = CannyDetector()(GOLDEN[f"image.{index}"].numpy(), 100, 200)
    np.testing.assert_array_equal(edges, GOLDEN[f"canny.{index}"].numpy())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_control_pictures_of_the_apps(detector: HEDdetector, case: dict[str, Any]):
    picture, options = HWC3(APPS[case["image"]].numpy()), case["options"]
    sized = resize_image(picture, options["image_resolution"])
    if case["hint"] == "canny":
        control = CannyDetector()(sized, options["low_threshold"], options["high_threshold"])
    else:
        control = detector(resize_image(picture, options["detect_resolution"]))
        control = cv2.resize(control, sized.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if case["hint"] == "fake_scribble":
        control = cv2.GaussianBlur(nms(control, 127, 3.0), (0, 0), 3.0)
        control = np.where(control > 4, np.uint8(255), np.uint8(0))
    equal = np.mean(control[:, :, None] == APPS[f"control.{case['name']}"].numpy())
    assert equal >= case["tolerance"]["equal"]
