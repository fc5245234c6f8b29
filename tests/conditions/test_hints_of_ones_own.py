"""Hints that people bring: what is sure is mended and told, what looks wrong is told."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from annotator.openpose.people import Keypoint, Person
from annotator.openpose.util import draw_people
from controlnet.conditions import find_condition
from controlnet.conditions.lines import edge_score
from controlnet.conditions.openpose import joints_of

LINES = np.zeros((64, 96), np.uint8)
LINES[20, 10:80] = LINES[10:50, 40] = 255
LINE_CONDITIONS = ("canny", "scribble", "scribble_interactive", "fake_scribble", "hough", "hed")


def read(name: str, source):
    return find_condition(name)().read(source)


def photograph() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    return cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("name", LINE_CONDITIONS)
def test_lines_are_taken_as_they_are(name):
    report = read(name, LINES)
    np.testing.assert_array_equal(report.hint, LINES)
    assert not report.warnings and not report.touched


@pytest.mark.parametrize("name", LINE_CONDITIONS)
def test_dark_lines_on_white_are_inverted_and_it_is_said(name):
    report = read(name, 255 - LINES)
    np.testing.assert_array_equal(report.hint, LINES)
    assert "inverted" in report.warnings[0]


@pytest.mark.parametrize("name", ["canny", "hough", "scribble"])
def test_what_jpeg_left_beside_lines_is_taken_away(name):
    thick = cv2.dilate(LINES, np.ones((3, 3), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(thick).save(buffer, format="JPEG", quality=60)
    report = read(name, buffer.getvalue())
    assert set(np.unique(report.hint)) == {0, 255}
    assert (report.hint == thick).mean() > 0.99 and report.touched > 0


def test_soft_edges_keep_their_greys():
    soft = cv2.GaussianBlur(LINES, (0, 0), 2)
    np.testing.assert_array_equal(read("hed", soft).hint, soft)


@pytest.mark.parametrize("name", LINE_CONDITIONS)
def test_colors_and_photographs_are_told(name):
    red = np.stack([LINES, 0 * LINES, 0 * LINES], axis=2)
    assert "colours" in read(name, red).warnings[0]
    np.testing.assert_array_equal(read(name, red).hint, LINES)
    assert any("photograph" in warning for warning in read(name, photograph()).warnings)


def test_depth_of_16_bits_is_stretched_and_it_is_said(tmp_path):
    depth = (np.linspace(900, 1100, 64 * 96).reshape(64, 96)).astype(np.uint16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    report = read("depth", str(tmp_path / "depth.png"))
    assert (report.hint.min(), report.hint.max()) == (0, 255)
    assert "900 to 1100" in report.warnings[0] and "near" in report.warnings[0].lower()
    colored = read("depth", cv2.applyColorMap(report.hint, cv2.COLORMAP_JET))
    assert "coloured" in colored.warnings[0]


def test_normals_with_swapped_channels_are_turned_and_it_is_said():
    slope = np.zeros((8, 8, 3), np.float32)
    slope[..., 0], slope[..., 2] = 0.3, np.sqrt(1 - 0.09)
    normals = (slope * 127.5 + 127.5).astype(np.uint8)
    report = read("normal", normals)
    np.testing.assert_array_equal(report.hint, normals)
    assert not report.warnings
    swapped = read("normal", normals[:, :, ::-1].copy())
    np.testing.assert_array_equal(swapped.hint, normals)
    assert "swapped" in swapped.warnings[0]
    assert "unit vectors" in read("normal", photograph()).warnings[-1]


def a_person(dx: float = 0.0) -> Person:
    places = [
        (64, 20), (64, 40), (50, 40), (44, 60), (40, 78), (78, 40), (84, 60), (88, 78), (56, 80), (54, 104),
        (52, 124), (72, 80), (74, 104), (76, 124), (61, 17), (67, 17), (57, 19), (71, 19),
    ]  # fmt: skip
    return Person(tuple(Keypoint(x + dx, y) for x, y in places))


def test_joints_are_read_off_a_skeleton():
    picture = draw_people([a_person()], 140, 128)
    found = {
        part: (x, y) for part, x, y, _ in joints_of(picture) if 1 <= part < 14
    }  # a face's joints overlap
    assert len(found) == 13
    for part, (x, y) in found.items():
        assert np.hypot(x - a_person().keypoints[part].x, y - a_person().keypoints[part].y) < 4, part


def test_poses_are_compared():
    pose = find_condition("openpose")
    asked = draw_people([a_person()], 140, 160)
    same, near, far = (draw_people([a_person(dx)], 140, 160) for dx in (0, 3, 25))
    scores = [pose().score(asked, found).value for found in (same, near, far, np.zeros_like(asked))]
    assert scores[0] == pytest.approx(1) and scores[0] > scores[1] > scores[2] > scores[3] == 0
    assert pose().score(np.zeros_like(asked), same) is None


def test_a_photograph_is_no_skeleton():
    assert "black" in read("openpose", photograph()).warnings[0]
    assert "colours" in read("openpose", np.stack([LINES] * 3, axis=2)).warnings[0]


def test_edges_within_two_pixels_agree():
    moved = np.roll(LINES, 2, axis=0)
    assert edge_score(LINES, moved).value > 0.9
    assert edge_score(LINES, np.roll(LINES, 9, axis=0)).value < 0.7
    assert edge_score(LINES, np.zeros_like(LINES)).value == 0
    assert edge_score(np.zeros_like(LINES), np.zeros_like(LINES)).value == 1


def test_depth_is_compared_after_scale_and_shift():
    depth = find_condition("depth")()
    ramp = np.tile(np.arange(0, 192, 3, dtype=np.uint8), (64, 1))
    assert depth.score(ramp, (ramp // 2 + 40).astype(np.uint8)).value < 0.01
    assert depth.score(ramp, ramp[:, ::-1].copy()).value > 0.15


def test_normals_are_compared_by_angle():
    flat = np.full((8, 8, 3), (127, 127, 255), np.uint8)
    aside = np.full((8, 8, 3), (255, 127, 127), np.uint8)
    normal = find_condition("normal")()
    assert normal.score(flat, flat).value == pytest.approx(0, abs=0.1)
    assert normal.score(flat, aside).value == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize("name", ["canny", "hough", "hed", "scribble", "depth", "openpose"])
def test_an_empty_hint_is_said(name):
    condition = find_condition(name)
    shape = (8, 8) if condition.hint_dimensions == 2 else (8, 8, 3)
    assert condition.nothing_found in condition().remarks(np.zeros(shape, np.uint8))


def test_a_drawing_in_white_on_black_is_recognised():
    scribble = find_condition("scribble")()
    board = np.zeros((64, 64, 3), np.uint8)
    board[20:24] = 255
    wrong = scribble.detect(board)
    assert "invert" in scribble.remarks(wrong, board)[0]
    right = scribble.detect(board, invert=1)
    assert (right > 0).mean() == pytest.approx(4 / 64) and not scribble.remarks(right, board)
