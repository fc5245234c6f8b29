"""The pose networks: the released files' keys, the original's maps, and files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import golden_data
import pytest
import torch

from annotator.network import NetworkDetector
from annotator.openpose import Body, Hand, OpenposeDetector
from annotator.openpose.model import bodypose_model, handpose_model
from annotator.util import resize_image
from ldm.weights import WeightsError

NETWORKS = {"body": bodypose_model, "hand": handpose_model}
DETECTORS = {"body": Body, "hand": Hand}
MAPS = {"body": ("body.paf", "body.heat"), "hand": ("hand.heat",)}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def released_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, (shape, _) in golden_data.released_keys(f"{name}_pose_model").items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files like the released ones, filled by the recipe."""
    paths = {name: tmp_path_factory.mktemp("pose") / f"{name}_pose_model.pth" for name in NETWORKS}
    for name, path in paths.items():
        shapes = released_shapes(name)
        torch.save({key: golden_data.recipe_tensor(key, shape) for key, shape in shapes.items()}, path)
    return paths


@pytest.fixture(scope="module")
def detectors(checkpoints: dict[str, Path]) -> Callable[[str, torch.dtype], NetworkDetector]:
    """``detectors(name, dtype)``, each loaded once."""
    loaded: dict[tuple[str, torch.dtype], NetworkDetector] = {}

    def detector(name: str, dtype: torch.dtype) -> NetworkDetector:
        key = (name, dtype)
        if key not in loaded:
            loaded[key] = DETECTORS[name](checkpoints[name], "cpu", dtype)
        return loaded[key]

    return detector


@pytest.fixture
def save_zeros(tmp_path: Path) -> Callable[[dict[str, tuple[int, ...]]], Path]:
    """``save_zeros(shapes)`` saves a tensor of zeros for each key, and gives the path."""

    def save(shapes: dict[str, tuple[int, ...]]) -> Path:
        torch.save({key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, path)
        return path

    path = tmp_path / "zeros.pth"
    return save


@pytest.mark.parametrize("name", NETWORKS)
def test_keys_are_the_released_ones_behind_the_name_of_a_part(name: str):
    with torch.device("meta"):
        network = NETWORKS[name]()
    state = network.state_dict()
    ours = [(key.partition(".")[2], tuple(tensor.shape)) for key, tensor in state.items()]
    assert ours == list(released_shapes(name).items())
    assert next(iter(state)) == {"body": "model0.conv1_1.weight", "hand": "model1_0.conv1_1.weight"}[name]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_the_originals(detectors, name: str, dtype: torch.dtype):
    golden, _ = golden_data.load_golden("pose")
    network = detectors(name, dtype).model
    for index in (0, 1) if dtype == torch.float32 else (0,):
        with torch.inference_mode():
            maps = network(golden[f"{name}.x.{index}"].to(dtype))
        for ours, key in zip(maps if name == "body" else [maps], MAPS[name], strict=True):
            assert golden_data.relative_error(ours, golden[f"{key}.{index}"]) < TOLERANCES[dtype]


def test_app_with_the_network(detectors):
    """Recipe weights find many joints but nobody, so that the picture alone would prove little."""
    apps, case = golden_data.load_golden("apps")
    app = next(app for app in case["cases"] if app["hint"] == "openpose" and app["detector"] == "body")
    picture = resize_image(apps[app["image"]].numpy(), app["options"]["detect_resolution"])
    skeletons, found = OpenposeDetector(detectors("body", torch.float32))(picture)
    assert not skeletons.any()
    assert not apps[f"control.{app['name']}"].any()
    assert len(found["candidate"]) > 20


def test_file_saved_from_the_module_is_read_too(save_zeros):
    with torch.device("meta"):
        state = handpose_model().state_dict()
    hand = Hand(save_zeros({key: tuple(tensor.shape) for key, tensor in state.items()}), "cpu")
    assert {tensor.dtype for tensor in hand.model.state_dict().values()} == {torch.float32}
    assert not any(tensor.any() for tensor in hand.model.state_dict().values())


def test_file_that_lacks_one_tensor_is_refused(save_zeros):
    shapes = released_shapes("hand")
    del shapes["conv3_2.bias"]
    with pytest.raises(WeightsError, match=r"zeros\.pth.*1 keys are missing \(model1_0\.conv3_2\.bias\)"):
        Hand(save_zeros(shapes), "cpu").load()


@pytest.mark.parametrize(("name", "other"), [("body", "hand"), ("hand", "body")])
def test_the_other_networks_file_is_refused(save_zeros, name: str, other: str):
    ours, others = released_shapes(name), released_shapes(other)
    shapes = {key: shape for key, shape in others.items() if key not in ours or key == "conv1_2.bias"}
    with pytest.raises(WeightsError) as raised:
        DETECTORS[name](save_zeros({**shapes, "conv1_1.bias": (65,)}), "cpu").load()
    for part in ("are missing", "are unknown", "[65] in the file", f"are in {name}_pose_model.pth"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"junk" * 100, b"<html>404</html>", b""], ids=["junk", "web page", "empty"]
)
def test_junk_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"junk\.pth"):
        Body(path, "cpu").load()


@pytest.mark.parametrize("detector", DETECTORS.values())
def test_missing_weights_are_named(
    detector: type[NetworkDetector], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("ldm.files.ROOT", tmp_path)
    monkeypatch.setenv("CONTROLNET_HOME", str(tmp_path))
    with pytest.raises(
        WeightsError, match=str(tmp_path / "annotator" / "ckpts" / detector.checkpoint_names[0])
    ):
        detector().load()


def test_half_precision_is_not_the_default_anywhere():
    assert {detector(device="cuda").dtype for detector in DETECTORS.values()} == {torch.float32}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_on_cuda(checkpoints: dict[str, Path], name: str):
    golden, _ = golden_data.load_golden("pose")
    network = DETECTORS[name](checkpoints[name]).model
    with torch.inference_mode():
        maps = network(golden[f"{name}.x.0"].cuda())
    for ours, key in zip(maps if name == "body" else [maps], MAPS[name], strict=True):
        assert golden_data.relative_error(ours, golden[f"{key}.0"]) < 5e-3  # TF32
