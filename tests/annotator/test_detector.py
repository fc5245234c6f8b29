"""The detector: lazy, strict with its files, quiet, and safe to share."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from annotator.ade20k import CLASSES, PALETTE, colorize
from annotator.uniformer import UniformerDetector, segmentor
from annotator.uniformer.segmentor import argmax_in_parts
from ldm.weights import WeightsError

PIPELINE = "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]"


@pytest.fixture(scope="module")
def detector(tiny) -> UniformerDetector:
    return tiny.detector()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 72, 3), dtype=np.uint8)


def test_map_is_the_palette_of_the_labels(detector: UniformerDetector, picture: np.ndarray):
    labels = detector.labels(picture)
    assert labels.dtype == np.uint8
    assert labels.shape == picture.shape[:2]
    assert len(np.unique(labels)) > 5, "a map of one class would prove nothing here"
    np.testing.assert_array_equal(detector(picture), colorize(labels))
    assert detector.classes == CLASSES
    np.testing.assert_array_equal(detector.palette, PALETTE)


def test_batch_gives_what_single_pictures_give(detector: UniformerDetector, picture: np.ndarray):
    other = picture[::-1].copy()
    for labels, alone in zip(detector.labels_of([picture, other]), (picture, other), strict=True):
        assert np.mean(labels == detector.labels(alone)) > 0.999
    assert detector.labels_of([]) == []


def test_channels_are_swapped_only_where_the_config_says_so(
    tiny, detector: UniformerDetector, picture: np.ndarray, tmp_path: Path
):
    config = tmp_path / "config.py"
    config.write_text(f"{tiny.config.read_text()}\nfeed_rgb_as_bgr = True\n")
    swapped = UniformerDetector(tiny.checkpoint, config, "cpu").labels(picture)
    np.testing.assert_array_equal(swapped, detector.labels(picture[:, :, ::-1]))
    assert np.mean(swapped == detector.labels(picture)) < 0.9


@pytest.mark.parametrize(("dtype", "equal"), [(torch.float16, 0.97), (torch.bfloat16, 0.9)])
def test_half_precision_gives_nearly_the_same_map(
    tiny, detector: UniformerDetector, picture: np.ndarray, dtype: torch.dtype, equal: float
):
    half = tiny.detector(dtype=dtype)
    assert np.mean(half.labels(picture) == detector.labels(picture)) > equal
    assert {p.dtype for p in half.model.backbone.parameters()} == {dtype}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_it_runs_in_half_precision(tiny, detector: UniformerDetector, picture: np.ndarray):
    on_gpu = UniformerDetector(tiny.checkpoint, tiny.config)
    assert np.mean(on_gpu.labels(picture) == detector.labels(picture)) > 0.97
    assert {(p.device.type, p.dtype) for p in on_gpu.model.decode_head.parameters()} == {
        ("cuda", torch.float16)
    }


def test_threads_load_it_once(tiny, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    loads, load = [], segmentor.load_segmentor
    monkeypatch.setattr(segmentor, "load_segmentor", lambda *args: loads.append(args) or load(*args))
    detector, maps = tiny.detector(), []
    threads = [threading.Thread(target=lambda: maps.append(detector.labels(picture))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(maps) == 4
    assert all((labels == maps[0]).all() for labels in maps)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["grey", "RGBA", "float"],
)
def test_refuses_what_is_no_rgb_picture_before_anything_is_loaded(picture: np.ndarray):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        UniformerDetector("nothing.pth")(picture)


def test_missing_default_weights_say_where_they_belong_and_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as raised:
        UniformerDetector().load()
    assert str(tmp_path / "annotator/ckpts/upernet_global_small.pth") in str(raised.value)
    assert "weights fetch upernet_global_small" in str(raised.value)


def test_config_without_a_checkpoint_of_its_own(tiny):
    with pytest.raises(WeightsError, match="names no checkpoint"):
        UniformerDetector(config=tiny.config).load()


@pytest.mark.parametrize(
    "content", [b"junk" * 100, b"<html>404</html>", b""], ids=["junk", "web page", "empty"]
)
def test_junk_checkpoint_is_refused(tiny, tmp_path: Path, content: bytes):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"junk\.pth"):
        UniformerDetector(path, tiny.config).load()


def test_checkpoint_of_another_network_is_refused(tiny, tmp_path: Path):
    state = torch.load(tiny.checkpoint, weights_only=True)["state_dict"]
    state["decode_head.conv_seg.weight"] = state["decode_head.conv_seg.weight"][:19]
    state["backbone.other"] = state.pop("backbone.norm1.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as raised:
        UniformerDetector(tmp_path / "other.pth", tiny.config).load()
    for part in ("other.pth", "backbone.norm1.weight", "backbone.other", "conv_seg.weight", str(tiny.config)):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such config"),
        ("test_pipeline = []", "has no `model`"),
        ("model = dict(", "cannot be run"),
        ("model = dict(type='EncoderDecoder')", "has no `test_pipeline`"),
        (f"model = dict(type='Nonsense')\n{PIPELINE}", "Nonsense"),
        (
            "custom_imports = dict(imports='not_installed_at_all')\nmodel = dict(type='x')",
            "not_installed_at_all",
        ),
    ],
    ids=["missing", "no model", "syntax error", "no pipeline", "unknown type", "missing package"],
)
def test_bad_config_is_refused_by_name(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "my_config.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"my_config\.py.*{message}"):
        UniformerDetector("weights.pth", path).load()


QUIET = """
import sys, numpy
from annotator.uniformer import UniformerDetector
detector = UniformerDetector(sys.argv[1], sys.argv[2], "cpu")
assert "mmseg" not in sys.modules and "mmcv" not in sys.modules and detector.model is None
detector(numpy.zeros((32, 32, 3), numpy.uint8))
"""


def test_nothing_is_imported_or_loaded_before_the_first_picture_and_nothing_is_printed(tiny):
    command = [sys.executable, "-c", QUIET, str(tiny.checkpoint), str(tiny.config)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_argmax_in_parts_is_the_argmax():
    logits = torch.randn(2, 21, 7, 9)
    for at_once in (1, 8, 100):
        labels = argmax_in_parts(logits, lambda part: part, at_once)
        assert torch.equal(labels.long(), logits.argmax(dim=1))

    def resize(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part, (50, 31), mode="bilinear")

    assert torch.equal(argmax_in_parts(logits, resize).long(), resize(logits).argmax(dim=1))


@pytest.mark.parametrize("shape", [(1, 4000, 3), (20, 400, 3)])
def test_picture_too_narrow_for_the_network(detector: UniformerDetector, shape: tuple[int, int, int]):
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[0]} pixels is too narrow"):
        detector(np.zeros(shape, np.uint8))
