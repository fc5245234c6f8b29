"""HED's detector: any widths, strict with its files, odd sizes, half precision, threads; and thinning."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import annotator.hed.inference
from annotator.canny import CannyDetector
from annotator.hed import ControlNetHED_Apache2, HEDdetector, nms
from annotator.hed.inference import side_maps
from ldm.weights import WeightsError

WIDTHS = (4, 6, 8, 130, 129)  # the last are wide enough for Winograd's convolutions


def small_network() -> ControlNetHED_Apache2:
    torch.manual_seed(0)
    network = ControlNetHED_Apache2(WIDTHS).eval().requires_grad_(False)
    network.norm.fill_(120)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    for block in network.blocks:
        block.projection.weight *= 0.02
    return network


@pytest.fixture(scope="module")
def network() -> ControlNetHED_Apache2:
    return small_network()


@pytest.fixture(scope="module")
def checkpoint(network: ControlNetHED_Apache2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hed") / "small.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> HEDdetector:
    return HEDdetector(checkpoint, device="cpu")


def picture_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def tensor_of(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).float().permute(2, 0, 1)[None]


def combined_as_the_original(maps: list[Tensor], height: int, width: int) -> np.ndarray:
    arrays = [logits.numpy()[0, 0] for logits in maps]
    sized = [cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR) for array in arrays]
    edges = 1 / (1 + np.exp(-np.mean(np.stack(sized, axis=2), axis=2).astype(np.float64)))
    return (edges * 255.0).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (16, 16), (33, 47), (100, 17)], ids=str)
def test_maps_of_any_size(network: ControlNetHED_Apache2, detector: HEDdetector, size: tuple[int, int]):
    picture = picture_of(*size)
    wanted = combined_as_the_original(network(tensor_of(picture)), *size)
    assert len(np.unique(wanted)) > 20, "a flat map would prove nothing here"
    found = detector(picture)
    assert found.dtype == np.uint8 and found.shape == size
    assert np.mean(found == wanted) >= 0.999
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("height", [150, 161])
def test_bands_give_what_the_whole_picture_gives(
    network: ControlNetHED_Apache2, height: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(annotator.hed.inference, "_VALUES_AT_ONCE", 1)
    calls = []
    monkeypatch.setattr(
        network.block1, "forward", lambda x, f=network.block1.forward: calls.append(x.shape) or f(x)
    )
    x = tensor_of(picture_of(height, 40))
    for banded, whole in zip(side_maps(network, x), network(x), strict=True):
        torch.testing.assert_close(banded, whole, rtol=1e-4, atol=1e-5)
    assert len(calls) > 4


def test_pictures_of_any_memory_layout(detector: HEDdetector):
    picture = picture_of(48, 64)
    turned = np.ascontiguousarray(picture[::-1])[::-1]  # negative strides
    np.testing.assert_array_equal(detector(turned), detector(picture))
    picture.flags.writeable = False
    detector(picture)


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.zeros((32, 32), np.uint8), r"uint8 RGB \[H, W, 3\]"),
        (np.zeros((32, 32, 3), np.float32), r"uint8 RGB \[H, W, 3\]"),
        (np.zeros((15, 40, 3), np.uint8), "40x15 pixels is too narrow"),
    ],
    ids=["grey", "float", "narrow"],
)
def test_refuses_other_pictures_before_anything_is_loaded(picture: np.ndarray, reason: str):
    with pytest.raises(ValueError, match=reason):
        HEDdetector("nothing.pth")(picture)


def test_half_precision(
    network: ControlNetHED_Apache2, checkpoint: Path, detector: HEDdetector, tmp_path: Path
):
    picture = picture_of(64, 96)
    for dtype, off_by in ((torch.float16, 2), (torch.bfloat16, 12)):
        half = HEDdetector(checkpoint, "cpu", dtype)
        assert np.abs(half(picture).astype(int) - detector(picture)).max() <= off_by
        assert {p.dtype for p in half.model.parameters()} == {dtype}
    state = network.state_dict() | {"block3.convs.1.bias": torch.full((8,), 1e6)}
    torch.save(state, tmp_path / "loud.pth")
    with pytest.raises(ValueError, match="NaN"):
        HEDdetector(tmp_path / "loud.pth", "cpu", torch.float16)(picture)


def test_threads_with_two_sizes_load_it_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    loads, build = [], HEDdetector.build
    monkeypatch.setattr(HEDdetector, "build", lambda self, path: loads.append(path) or build(self, path))
    shared, wrong = HEDdetector(checkpoint, "cpu"), []
    pictures = [picture_of(40, 64, seed) for seed in range(2)] + [
        picture_of(64, 40, seed) for seed in range(2)
    ]
    alone = [HEDdetector(checkpoint, "cpu")(picture) for picture in pictures]
    loads.clear()

    def work(index: int) -> None:
        wrong.extend(np.abs(shared(pictures[index]).astype(int) - alone[index]).max() for _ in range(5))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(wrong) == 20 and max(wrong) <= 1


def test_a_network_has_five_widths():
    with pytest.raises(ValueError, match=r"5 blocks.*\[64, 128\]"):
        ControlNetHED_Apache2((64, 128))


def test_files_of_other_networks_are_refused(network: ControlNetHED_Apache2, tmp_path: Path):
    state = network.state_dict()
    cases = {
        "lacks": {key: tensor for key, tensor in state.items() if key != "block2.projection.weight"},
        "more": {**state, "block6.projection.weight": torch.zeros(1)},
        "shapes": {**state, "block2.convs.0.weight": torch.zeros(6, 4, 1, 1)},
        "other": {"decode_head.conv_seg.weight": torch.zeros(150, 8)},
    }
    wanted = {
        "lacks": r"do not fit ControlNetHED_Apache2: 1 keys are missing \(block2\.projection\.weight\)",
        "more": r"unknown to the model \(block6\.projection\.weight\)",
        "shapes": r"block2\.convs\.0\.weight: \[6, 4, 1, 1\] in the file",
        "other": r"decode_head\.conv_seg\.weight\).*ControlNetHED\.pth",
    }
    for name, changed in cases.items():
        torch.save(changed, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match=wanted[name]) as raised:
            HEDdetector(tmp_path / f"{name}.pth", "cpu").load()
        assert f"{name}.pth" in str(raised.value)


def test_released_weights_come_before_those_that_ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path / "checkout")
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"ckpts.ControlNetHED\.pth: .*are missing\. Fetch them"):
        HEDdetector().load()
    folder = tmp_path / "annotator" / "ckpts"
    folder.mkdir(parents=True)
    for name in ("hed_tiny.safetensors", "ControlNetHED.pth"):
        (folder / name).write_bytes(b"")
        assert HEDdetector.default_checkpoint() == folder / name


def test_thinned_lines_are_one_pixel_wide_where_the_edge_runs():
    soft = np.zeros((40, 60), np.float32)
    soft[:, 28:33] = (60, 140, 220, 140, 60)
    soft *= np.linspace(1, 0.9, 40)[:, None]  # along an even edge, every pixel would be a largest one
    lines = nms(soft, 60, 1.0)
    assert set(np.unique(lines)) == {0, 255}
    assert (lines[4:-4] == 255).nonzero()[1].tolist() == [30] * 32
    assert not nms(soft, 230, 1.0).any()
    np.testing.assert_array_equal(nms(soft.T, 60, 1.0), lines.T)


def test_canny_swaps_its_thresholds_and_refuses_grey_pictures():
    picture = picture_of(64, 64)
    edges = CannyDetector()(picture, 50, 150)
    assert set(np.unique(edges)) == {0, 255} and edges.shape == (64, 64)
    np.testing.assert_array_equal(CannyDetector()(picture, 150, 50), edges)
    with pytest.raises(ValueError, match=r"uint8 RGB \[H, W, 3\]"):
        CannyDetector()(picture[..., 0], 50, 150)
