"""The line detector with the weights that ship with the project, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, relative_error
from torch import Tensor, nn

from annotator.mlsd import MLSDdetector, MobileV2_MLSD_Large
from annotator.mlsd.convert_onnx import Convolution, state_of
from annotator.mlsd.inference import _fold_batch_norms
from annotator.mlsd.lines import decode_lines, draw_lines
from annotator.util import annotator_ckpts_path
from ldm.weights import WeightsError, load_into, read_state_dict

SHIPPED = Path(annotator_ckpts_path) / "mlsd_large.safetensors"

FIVE_LINES = np.array(
    [[30, 30, 220, 30], [40, 60, 40, 220], [65, 210, 215, 210], [70, 190, 150, 70], [165, 75, 220, 185]]
)


class Gives(nn.Module):
    """A network that answers everything with one value, or raises it."""

    def __init__(self, answer: float | Exception):
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.answer, Exception):
            raise self.answer
        return torch.full((1, 9, x.shape[2] // 2, x.shape[3] // 2), self.answer)


@pytest.fixture(scope="module")
def detector() -> MLSDdetector:
    return MLSDdetector(SHIPPED, device="cpu")


@pytest.fixture
def five_lines() -> np.ndarray:
    picture = np.full((256, 256, 3), (235, 230, 220), np.uint8)
    for start_x, start_y, end_x, end_y in FIVE_LINES.tolist():
        cv2.line(picture, (start_x, start_y), (end_x, end_y), (40, 60, 90), 1, cv2.LINE_AA)
    return picture


def distances(known: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How far the worse end of each known line is from the nearest found one, whichever way it points."""
    turned = np.stack([found, found[:, [2, 3, 0, 1]]])
    return np.abs(turned[:, :, None] - known).max(axis=-1).min(axis=(0, 1))


def test_finds_five_known_lines_and_no_others(detector: MLSDdetector, five_lines: np.ndarray):
    found = detector.lines(five_lines)
    assert len(found) == 5
    assert distances(FIVE_LINES, found).max() < 4
    drawn = detector(five_lines)
    assert (drawn == draw_lines(found, 256, 256)).all()
    assert set(np.unique(drawn)) == {0, 255}


def test_finds_them_at_a_size_that_is_no_multiple_of_16(detector: MLSDdetector, five_lines: np.ndarray):
    small = cv2.resize(five_lines, (203, 209), interpolation=cv2.INTER_AREA)
    scale = [203 / 256, 209 / 256] * 2
    assert distances(FIVE_LINES * scale, detector.lines(small)).max() < 4
    assert detector(small).shape == (209, 203)


def test_higher_thresholds_give_fewer_lines(detector: MLSDdetector, five_lines: np.ndarray):
    lengths = np.hypot(*(FIVE_LINES[:, 2:] - FIVE_LINES[:, :2]).T) / 2  # in pixels of the maps
    threshold = np.sort(lengths)[1:3].mean()
    assert len(detector.lines(five_lines, thr_d=threshold)) == 3
    assert len(detector.lines(five_lines, thr_v=0.99)) < 5


def test_without_a_line_the_picture_is_black_and_the_log_says_so(
    detector: MLSDdetector, caplog: pytest.LogCaptureFixture
):
    flat = np.full((100, 130, 3), 128, np.uint8)
    with caplog.at_level(logging.INFO, "annotator.mlsd"):
        drawn = detector(flat)
    assert drawn.shape == (100, 130)
    assert not drawn.any()
    assert "No line" in caplog.text
    assert detector.lines(flat).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 40, 3)])
def test_tiny_pictures(detector: MLSDdetector, shape: tuple[int, int, int]):
    assert detector(np.zeros(shape, np.uint8)).shape == shape[:2]


def test_an_error_is_no_black_picture():
    detector = MLSDdetector(device="cpu")
    picture = np.zeros((64, 64, 3), np.uint8)
    detector.model = Gives(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        detector(picture)
    detector.model = Gives(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        detector(picture)


def test_at_most_200_lines_the_best_first():
    maps = torch.full((1, 5, 64, 64), -9.0)
    maps[0, 0, ::2, ::2] = torch.linspace(0, 5, 1024).view(32, 32)
    maps[0, 1:] = torch.tensor([-3.0, 0, 3, 0])[:, None, None]
    lines = decode_lines(maps, 0.1, 0.1)
    assert len(lines) == 200
    assert lines[0].tolist() == [59, 62, 65, 62]
    assert lines[1].tolist() == [57, 62, 63, 62]


def test_released_weights_come_before_those_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    (tmp_path / "annotator" / "ckpts").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"mlsd_large_512_fp32\.pth"):
        MLSDdetector().load()
    for name in ("mlsd_large.safetensors", "mlsd_large_512_fp32.pth"):
        (tmp_path / "annotator" / "ckpts" / name).touch()
        assert MLSDdetector.default_checkpoint().name == name


def test_weights_that_lack_a_tensor_or_hold_another_are_refused(tmp_path: Path):
    state = read_state_dict(SHIPPED)
    torch.save(state | {"block24.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match=r"more\.pth.*unknown to the model \(block24\.weight\)"):
        MLSDdetector(tmp_path / "more.pth").load()
    del state["block23.conv3.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"less\.pth.*missing \(block23\.conv3\.bias\)"):
        MLSDdetector(tmp_path / "less.pth").load()


def test_the_network_can_still_be_trained():
    model = MobileV2_MLSD_Large()
    model(torch.randn(2, 4, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def folded_convolutions(model: MobileV2_MLSD_Large) -> list[Convolution]:
    """Kernels and biases as ONNX has them, all sixteen maps, the decoder before the encoder."""
    last = model.block23.conv3
    whole = (last.weight.detach().clone(), last.bias.detach().clone())
    for block in list(model.modules()):
        if isinstance(block, nn.Sequential):
            _fold_batch_norms(block)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)][:-1]
    convolutions = [(layer.weight.detach(), layer.bias.detach()) for layer in layers]
    return [*convolutions[-18:], *convolutions[:-18], whole]


def test_converted_convolutions_give_the_same_maps():
    model = fill_by_recipe(MobileV2_MLSD_Large()).eval()
    x = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        expected = model(x)
        convolutions = folded_convolutions(model)
        converted = MobileV2_MLSD_Large().eval()
        load_into(converted, state_of(convolutions, "test"), "test")
        assert relative_error(converted(x), expected) < 2e-3  # most kernels are rounded to float16

    with pytest.raises(WeightsError, match=r"no convolution \[64, 64, 3, 3\] for block23\.conv2\.0"):
        state_of([pair for pair in convolutions if pair is not convolutions[16]], "test")
    with pytest.raises(WeightsError, match=r"more convolutions .*\[\[16, 64, 1, 1\]\]"):
        state_of([*convolutions, convolutions[-1]], "test")
