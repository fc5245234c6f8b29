"""The pose detector as a whole: lazy, clear where nobody is found, right at the edges of the picture."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from pose_stand_ins import body_that_says, body_that_sees_nobody, hand_that_looks_up
from torch import nn

from annotator.openpose import Body, Hand, Keypoint, OpenposeDetector, Person, draw_people
from annotator.openpose.maps import MAX_INPUT_PIXELS
from benchmarks.original_way.openpose import made_up_maps
from ldm.weights import WeightsError

SIDE = 320
PICTURE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def body() -> Body:
    """Two people with arms, whatever the picture."""
    fields, heat = made_up_maps(2, 23, 23, seed=1)
    return body_that_says(torch.from_numpy(fields)[None], torch.from_numpy(heat)[None])


@pytest.fixture
def hand() -> Hand:
    """Finds joint 0 in the upper left corner of its square, joint 1 at the left edge, and no other."""
    maps = {}
    for cells in (23, 46, 69, 92):
        maps[cells] = torch.zeros(22, cells, cells, dtype=torch.uint8)
        maps[cells][0, : cells // 6, : cells // 6] = 255
        maps[cells][1, cells // 2 - 2 : cells // 2 + 2, : cells // 6] = 255
    return hand_that_looks_up(maps)


class SeesChannels(nn.Module):
    """Remembers the mean of each channel that it sees; finds nobody."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.means = x.mean(dim=(0, 2, 3))
        return torch.zeros(1, 38, 23, 23), torch.zeros(1, 19, 23, 23)


def test_nothing_is_loaded_before_it_is_needed(body: Body, tmp_path: Path):
    detector = OpenposeDetector(body, Hand(tmp_path / "no_hands.pth", "cpu"))
    assert len(detector.people(PICTURE)) == 2, "hands are off: their weights are not missed"
    with pytest.raises(WeightsError, match=r"no_hands\.pth"):
        detector(PICTURE, hand=True)
    with pytest.raises(WeightsError, match=r"no_body\.pth"):
        OpenposeDetector(Body(tmp_path / "no_body.pth", "cpu"))(PICTURE)


def test_without_arguments_it_takes_the_released_weights():
    detector = OpenposeDetector()
    assert detector.body.checkpoint_names == ("body_pose_model.pth",)
    assert detector.hand.checkpoint_names == ("hand_pose_model.pth",)
    assert (detector.hand.device, detector.hand.dtype) == (detector.body.device, detector.body.dtype)


def test_nobody_gives_an_empty_canvas_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "annotator.openpose"):
        canvas, found = OpenposeDetector(body_that_sees_nobody())(PICTURE[:200])
    assert canvas.shape == (200, SIDE, 3)
    assert canvas.dtype == np.uint8
    assert not canvas.any()
    assert found == {"candidate": [], "subset": []}
    assert "Nobody is found in the picture of 320x200 pixels" in caplog.text


def test_canvas_is_the_people_drawn(body: Body, hand: Hand):
    detector = OpenposeDetector(body, hand)
    for with_hands in (False, True):
        people = detector.people(PICTURE, hand=with_hands)
        canvas, found = detector(PICTURE, hand=with_hands)
        np.testing.assert_array_equal(canvas, draw_people(people, SIDE, SIDE))
        assert len(found["subset"]) == len(people) == 2
    assert all(joint is None or 0 < joint.score < 1.1 for person in people for joint in person.keypoints)
    assert all(0.4 < person.score < 2.1 for person in people)


def test_the_network_sees_bgr(body: Body):
    body.model = network = SeesChannels()
    picture = np.full((64, 64, 3), (255, 128, 0), np.uint8)
    OpenposeDetector(body)(picture)
    torch.testing.assert_close(network.means, torch.tensor([0, 128, 255]) / 256 - 0.5)


def test_joints_of_a_hand_at_the_edge_of_its_square_are_found_where_they_are(body: Body, hand: Hand):
    without, with_hands = (OpenposeDetector(body, hand).people(PICTURE, hand=on) for on in (False, True))
    found = 0
    for person, same in zip(with_hands, without, strict=True):
        assert person.keypoints == same.keypoints
        assert same.left_hand is None
        for name in ("left_hand", "right_hand"):
            joints = getattr(person, name)
            if joints is None:
                continue
            found += 1
            wrist = person[name.replace("hand", "wrist")]
            assert joints[2:] == (None,) * 19
            for joint in joints[:2]:
                assert abs(joint.x - wrist.x) < 80, "not at the left edge of the picture"
                assert abs(joint.y - wrist.y) < 80
            assert joints[1].y > joints[0].y + 10
    assert found >= 2


def test_hand_gives_the_originals_array(hand: Hand):
    peaks = hand(PICTURE[:96, :96])
    assert peaks.dtype == np.int64
    assert peaks.shape == (21, 2)
    assert (peaks[2:] == 0).all()
    assert hand.joints(PICTURE[:96, :96])[5] is None


@pytest.mark.parametrize(
    "picture",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["grey", "RGBA", "float"],
)
def test_what_is_no_rgb_picture_is_refused_before_anything_is_loaded(picture: np.ndarray):
    for detector in (OpenposeDetector(), Body("nothing.pth"), Hand("nothing.pth")):
        with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\]"):
            detector(picture)


@pytest.mark.parametrize(("shape", "kind"), [((10, 2000, 3), "wide"), ((1000, 2, 3), "narrow")])
def test_picture_too_wide_or_too_narrow(shape: tuple[int, int, int], kind: str):
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[0]} pixels is too {kind}"):
        OpenposeDetector()(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 160, 3), (160, 2, 3), (184, 184 * 3, 3)])
def test_small_and_odd_pictures(shape: tuple[int, int, int]):
    cells = -(-round(shape[1] * 184 / shape[0]) // 8)
    fields, heat = made_up_maps(1, 23, cells)
    assert 184 * 8 * cells < MAX_INPUT_PIXELS
    body = body_that_says(torch.from_numpy(fields)[None], torch.from_numpy(heat)[None])
    canvas, _ = OpenposeDetector(body)(np.zeros(shape, np.uint8))
    assert canvas.shape == shape


class RunsOutOfMemory(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")


def test_out_of_memory_is_an_error_and_no_black_picture(body: Body):
    body.model = RunsOutOfMemory()
    with pytest.raises(torch.OutOfMemoryError):
        OpenposeDetector(body)(PICTURE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_overflow_in_half_precision_is_an_error_and_no_black_picture(value: float):
    heat = torch.zeros(1, 19, 23, 23, dtype=torch.float16)
    heat[0, 3, 4, 5] = value
    with pytest.raises(ValueError, match=r"overflows in torch\.float16"):
        OpenposeDetector(body_that_says(torch.zeros(1, 38, 23, 23), heat))(PICTURE)


def test_a_person_is_checked():
    with pytest.raises(ValueError, match="18 keypoints, got 17"):
        Person((None,) * 17)
    with pytest.raises(ValueError, match="21 joints, got 5"):
        Person((None,) * 18, left_hand=(None,) * 5)
    person = Person((Keypoint(3, 4), *[None] * 16, Keypoint(1, 7)))
    assert person["nose"] == (3, 4, 1)
    assert person["neck"] is None
    assert person.box == (1, 4, 3, 7)
    assert Person((None,) * 18).box is None
    with pytest.raises(ValueError, match="'tail' is no joint"):
        person["tail"]
