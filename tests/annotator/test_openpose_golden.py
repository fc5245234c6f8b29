"""The pose detector against the original's joints, people, hands and pictures."""

from __future__ import annotations

from typing import Any

import cv2
import golden_data
import numpy as np
import pytest
import torch
from pose_stand_ins import body_that_says, body_that_sees_nobody, hand_that_looks_up

from annotator.openpose import Body, Hand, OpenposeDetector
from annotator.openpose.util import draw_bodypose, draw_handpose, handDetect
from annotator.util import HWC3, resize_image

GOLDEN, CASE = golden_data.load_golden("pose")
SIZES = {case["name"]: tuple(case["size"]) for case in CASE["cases"]}
DECODED = [name for name in SIZES if name.startswith("decode")]
HANDS = [name for name in SIZES if name.startswith("hands")]


@pytest.fixture(scope="module")
def hand() -> Hand:
    return hand_that_looks_up({size: GOLDEN[f"hand_maps.{size}"] for size in (23, 46, 69, 92)})


def any_picture(name: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZES[name], 3), dtype=np.uint8)


def black(name: str) -> np.ndarray:
    return np.zeros((*SIZES[name], 3), np.uint8)


def assert_equal_but_a_few(picture: np.ndarray, expected: torch.Tensor, least: float = 0.999) -> None:
    assert picture.dtype == np.uint8
    assert picture.shape == expected.shape
    assert np.mean(picture == expected.numpy()) >= least


@pytest.mark.parametrize("name", DECODED)
def test_joints_and_people(name: str):
    body = body_that_says(GOLDEN[f"{name}.paf"], GOLDEN[f"{name}.heat"])
    candidate, subset = body(any_picture(name))
    np.testing.assert_allclose(candidate, GOLDEN[f"{name}.candidate"].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(subset, GOLDEN[f"{name}.subset"].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", DECODED)
def test_the_rounding_of_float16_moves_no_joint_by_more_than_a_pixel(name: str):
    """With the networks' error in float16, which test_openpose_networks.py measures: less than 1e-3."""
    random = np.random.default_rng(0)
    maps = [GOLDEN[f"{name}.{kind}"] for kind in ("paf", "heat")]
    noise = [torch.from_numpy(random.standard_normal(each.shape)).float() * each.norm() for each in maps]
    rounded = [each + 1e-3 * error / each.numel() ** 0.5 for each, error in zip(maps, noise, strict=True)]
    candidate, subset = body_that_says(*rounded)(any_picture(name))
    expected = GOLDEN[f"{name}.candidate"].numpy()
    assert candidate.shape == expected.shape
    assert subset.shape == GOLDEN[f"{name}.subset"].shape
    assert np.abs(candidate - expected)[:, :2].max(initial=0) <= 1


@pytest.mark.parametrize("name", DECODED)
def test_skeletons(name: str):
    drawn = draw_bodypose(black(name), GOLDEN[f"{name}.candidate"].numpy(), GOLDEN[f"{name}.subset"].numpy())
    np.testing.assert_array_equal(drawn, GOLDEN[f"{name}.skeleton"].numpy())


@pytest.mark.parametrize("name", HANDS)
def test_hands(hand: Hand, name: str):
    np.testing.assert_array_equal(hand(any_picture(name)), GOLDEN[f"{name}.peaks"].numpy())
    drawn = draw_handpose(black(name), [GOLDEN[f"{name}.peaks"].numpy()])
    np.testing.assert_array_equal(drawn, GOLDEN[f"{name}.drawn"].numpy())


def test_where_to_look_for_hands():
    boxes = handDetect(GOLDEN["whole.candidate"].numpy(), GOLDEN["whole.subset"].numpy(), black("whole.0"))
    assert boxes == [[*box[:3], bool(box[3])] for box in GOLDEN["whole.boxes"].tolist()]


@pytest.mark.parametrize(("name", "with_hands"), [("whole.0", False), ("whole.1", True)])
def test_whole_detector(hand: Hand, name: str, with_hands: bool):
    detector = OpenposeDetector(body_that_says(GOLDEN["whole.paf"], GOLDEN["whole.heat"]), hand)
    canvas, found = detector(any_picture(name), hand=with_hands)
    assert_equal_but_a_few(canvas, GOLDEN[f"{name}.canvas"])
    np.testing.assert_allclose(found["candidate"], GOLDEN["whole.candidate"].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["subset"], GOLDEN["whole.subset"].numpy(), rtol=0, atol=1e-4)


APPS, APPS_CASE = golden_data.load_golden("apps")
POSE_APPS = {  # the one with detector "body" is in test_openpose_networks.py
    case["name"]: case
    for case in APPS_CASE["cases"]
    if case["app"] == "pose2image" and case["detector"] != "body"
}


def body_of_app(detector: str) -> Body:
    """The body detector of a case of the apps."""
    if detector.startswith("pose maps"):
        index = detector.split()[-1]
        return body_that_says(APPS[f"pose.paf.{index}"], APPS[f"pose.heat.{index}"])
    assert detector == "nobody"
    return body_that_sees_nobody()


@pytest.mark.parametrize("name", POSE_APPS)
def test_apps(name: str):
    case: dict[str, Any] = POSE_APPS[name]
    picture = HWC3(APPS[case["image"]].numpy())
    detector = OpenposeDetector(body_of_app(case["detector"]))
    skeletons, _ = detector(resize_image(picture, case["options"]["detect_resolution"]))
    height, width = resize_image(picture, case["options"]["image_resolution"]).shape[:2]
    control = cv2.resize(skeletons, (width, height), interpolation=cv2.INTER_NEAREST)
    assert_equal_but_a_few(control, APPS[f"control.{name}"], case["tolerance"]["equal"])
    assert_equal_but_a_few(control, APPS[f"shown.{name}"], case["tolerance"]["equal"])
