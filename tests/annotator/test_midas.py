"""The depth detector: maps made of depth, narrow networks, files that do not fit, pictures of any size."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import golden_data
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from annotator.midas import MidasDetector, depth_picture, normal_picture
from annotator.midas.backbone import ExactGroupNorm
from annotator.midas.config import config_of, dpt_config
from annotator.midas.doubled import ConvolveDoubled
from annotator.midas.network import DepthNetwork
from annotator.midas.released import to_released, to_transformers
from controlnet.conditions import find_condition
from ldm.weights import WeightsError, save_state_dict

NARROW = {
    "stem": 16,
    "widths": (32, 64, 64),
    "depths": (1, 2, 1),
    "hidden_size": 128,
    "layers": 3,
    "mlp": 96,
    "side": 4,
    "laterals": (32, 64, 48, 40),
    "fusion": 24,
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A narrow network's, by the recipe."""
    with torch.device("meta"):
        network = DepthNetwork(dpt_config(**NARROW))
    state = golden_data.recipe_state(network.state_dict())
    state["scratch.output_conv.4.bias"].fill_(3)
    return state


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("midas") / "narrow.safetensors"
    save_state_dict(state, path)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> MidasDetector:
    return MidasDetector(checkpoint, device="cpu")


def picture_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_near_is_bright_and_a_slope_leans():
    depth = np.tile(np.linspace(100, 200, 51, dtype=np.float32), (20, 1))
    picture = depth_picture(depth)
    assert picture.dtype == np.uint8
    assert (picture[0, 0], picture[0, 25], picture[0, -1]) == (0, 127, 255)
    assert (picture == depth_picture(3 * depth - 500)).all()
    normal = normal_picture(depth, bg_th=0.4)
    length = np.hypot(16, 2 * np.pi)  # Sobel's weights sum to 4 on either side of two pixels
    expected = np.array([16 / length, 0, 2 * np.pi / length]) * 127.5 + 127.5
    assert (normal[10, 30] == expected.astype(np.uint8)).all()
    assert (normal[10, :20] == (127, 127, 255)).all(), "the background faces the viewer"
    assert (normal_picture(depth.T, bg_th=0.4)[30, 10] == expected[[1, 0, 2]].astype(np.uint8)).all()


def test_constant_depth_gives_clear_maps_and_says_so(caplog: pytest.LogCaptureFixture):
    flat = np.full((6, 5), 7, np.uint8)
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (depth_picture(flat) == 0).all()
        assert (normal_picture(flat) == (127, 127, 255)).all()
    assert "same everywhere" in caplog.text
    assert "face the viewer" in caplog.text


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.zeros((4, 4, 1)), r"numbers \[H, W\], got float64 \[4, 4, 1\]"),
        (np.zeros((0, 4)), r"got float64 \[0, 4\]"),
        (np.array([[1.0, np.nan]]), "NaN or infinity"),
        (np.array([[1.0, np.inf]]), "NaN or infinity"),
    ],
    ids=["channels", "empty", "NaN", "infinity"],
)
def test_no_map_is_made_of_what_is_no_depth(depth: np.ndarray, message: str):
    for make in (depth_picture, normal_picture):
        with pytest.raises(ValueError, match=message):
            make(depth)


@pytest.mark.parametrize("a", [0, -1, float("nan")])
def test_normals_need_a_z(a: float):
    with pytest.raises(ValueError, match="above 0"):
        normal_picture(np.eye(3), a)


def test_widths_are_read_off_a_file(state: dict[str, Tensor]):
    config, expected = config_of(state, "narrow"), dpt_config(**NARROW)
    assert config.to_dict() == expected.to_dict()
    assert (config.num_attention_heads, config.backbone_out_indices[2:]) == (2, [1, 2])


def test_released_names_lead_there_and_back(state: dict[str, Tensor]):
    there = to_transformers(state)
    assert not set(there) & set(state)
    back = to_released(there)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (64, 288)])
def test_rearranged_for_inference_it_gives_the_same_depth(
    detector: MidasDetector, checkpoint: Path, height: int, width: int
):
    plain = DepthNetwork.from_file(checkpoint).eval()
    x = torch.rand(2, 3, height, width) * 2 - 1
    with torch.no_grad():
        ours, expected = detector.model(x), plain(x)
    assert ours.shape == (2, height, width)
    assert expected.std() > 1e-3
    assert golden_data.relative_error(ours, expected) < 1e-5


def test_normalisation_keeps_its_digits_with_channels_last():
    x = torch.randn(2, 16, 60, 90) + 3
    norm = nn.GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    expected = copy.deepcopy(norm).double()(x.double())
    with torch.no_grad():
        ours = ExactGroupNorm(norm)(x.contiguous(memory_format=torch.channels_last))
    assert golden_data.relative_error(ours, expected) < 1e-6


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 20), (40, 17)])
def test_convolving_before_doubling_is_convolving_after_it(height: int, width: int):
    x = torch.randn(2, 6, height, width, dtype=torch.float64)
    convolution = nn.Conv2d(6, 5, 3, padding=1, dtype=torch.float64)
    with torch.no_grad():
        large = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        expected, ours = convolution(large), ConvolveDoubled(convolution)(x)
    assert golden_data.relative_error(ours, expected) < 1e-12


def test_a_picture_of_any_size_is_continued_and_cut_again(detector: MidasDetector):
    picture = picture_of(50, 77)
    continued = np.pad(picture, ((0, 14), (0, 19), (0, 0)), mode="edge")
    depth, normal = detector(picture)
    assert (depth.shape, normal.shape) == ((50, 77), (50, 77, 3))
    np.testing.assert_array_equal(detector.depth(picture), detector.depth(continued)[:50, :77])
    assert detector.depth(picture_of(1, 1)).shape == (1, 1)


def test_call_gives_the_pictures_of_the_depth(detector: MidasDetector):
    picture = picture_of(64, 64)
    raw = detector.depth(picture)
    assert (raw.dtype, raw.shape) == (np.float32, (64, 64))
    depth, normal = detector(picture, 3.0, 0.3)
    np.testing.assert_array_equal(depth, depth_picture(raw))
    np.testing.assert_array_equal(normal, normal_picture(raw, 3.0, 0.3))


def test_the_network_sees_rgb_from_minus_one_to_one():
    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.x = x
            return x[:, 0]

    detector = MidasDetector(device="cpu")
    detector.model = Watch()
    depth = detector.depth(np.array([[(0, 255, 51), (255, 0, 0)]], np.uint8)[:, ::-1])
    assert torch.allclose(detector.model.x[0, :, 0], torch.tensor([[1.0, -1], [-1, 1], [-1, -0.6]]))
    np.testing.assert_array_equal(depth, [[1, -1]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("pretrained.model.blocks.1.attn.qkv.bias"), "blocks.1.attn.qkv.bias"),
        (lambda state: state.pop("scratch.layer3_rn.weight"), "scratch.layer3_rn.weight"),
        (lambda state: state.update(optimizer=torch.zeros(3)), "unknown to the model.*optimizer"),
        (lambda state: state.update({"pretrained.model.cls_token": torch.zeros(3, 90)}), "90 channels"),
        (lambda state: state.update({"pretrained.model.cls_token": torch.tensor(1.0)}), "scalar"),
        (lambda state: state.update({"pretrained.model.pos_embed": torch.zeros(1, 19, 128)}), "pos_embed"),
        (lambda state: [state.pop(key) for key in list(state) if ".blocks.1." in key], "blocks"),
    ],
    ids=["missing", "width missing", "extra", "odd width", "scalar", "not square", "a block less"],
)
def test_a_file_that_does_not_fit_is_refused(state: dict[str, Tensor], tmp_path: Path, change, named: str):
    changed = dict(state)
    change(changed)
    path = tmp_path / "changed.safetensors"
    save_state_dict(changed, path)
    with pytest.raises(WeightsError, match=rf"changed\.safetensors.*{named}.*dpt_hybrid-midas-501f0c75\.pt"):
        MidasDetector(path, device="cpu").load()


def test_a_classifier_in_the_file_is_left_out(
    state: dict[str, Tensor], tmp_path: Path, detector: MidasDetector
):
    path = tmp_path / "with_head.pt"
    torch.save({**state, "pretrained.model.head.weight": torch.zeros(5, 128)}, path)
    picture = picture_of(32, 64)
    np.testing.assert_array_equal(MidasDetector(path, device="cpu").depth(picture), detector.depth(picture))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(checkpoint: Path, detector: MidasDetector, dtype: torch.dtype):
    picture = picture_of(64, 96)
    half, full = MidasDetector(checkpoint, "cpu", dtype).depth(picture), detector.depth(picture)
    assert np.linalg.norm(half - full) < 0.02 * np.linalg.norm(full)


def test_refuses_what_is_no_picture_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\]"):
        MidasDetector("nothing.pt")(np.zeros((8, 8), np.uint8))


QUIET = """
import sys, numpy
from annotator.midas import MidasDetector
detector = MidasDetector(sys.argv[1], "cpu")
assert "transformers" not in sys.modules
detector(numpy.zeros((32, 32, 3), numpy.uint8))
"""


def test_nothing_is_imported_before_the_first_picture_and_nothing_is_printed(checkpoint: Path):
    command = [sys.executable, "-c", QUIET, str(checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_released_file_comes_before_the_one_that_ships(
    state: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path / "checkout")
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"dpt_hybrid-midas-501f0c75\.pt: .*are missing\. Fetch them"):
        MidasDetector(device="cpu").load()
    folder = tmp_path / "annotator" / "ckpts"
    folder.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    save_state_dict(state, folder / "depth_tiny.safetensors")
    for name in ("depth", "normal"):
        condition = find_condition(name)(device="cpu")
        assert (
            condition.detector_file() == folder / "depth_tiny.safetensors" and not condition.missing_weights()
        )
        assert condition.hint(picture, 64, 64).std() > 0
    assert "knows drawn scenes alone. For photographs" in caplog.text
    assert "weights fetch dpt_hybrid-midas-501f0c75" in caplog.text
    (folder / "dpt_hybrid-midas-501f0c75.pt").write_bytes(b"")
    assert MidasDetector.default_checkpoint().name == "dpt_hybrid-midas-501f0c75.pt"
