"""The Cog predictor, through Cog's own HTTP server and called directly."""

from __future__ import annotations

import base64
import io
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as LocalPath

import httpx
import numpy as np
import pytest
from cog import Path
from front.conftest import ROOT
from front.small_page import ColorDetector, draw, drawing, stand_in
from PIL import Image

import predict
from annotator.ade20k import colorize
from controlnet.conditions import ConditionError, find_condition
from controlnet.generation.generator import Generator
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import Request, RequestError
from controlnet.generation.samplers import SAMPLERS
from controlnet.pictures import PictureError

# Name, type and default of the public controlnet-seg model's inputs, in its order.
PUBLIC = {
    "image": ("Path", None),
    "prompt": ("str", None),
    "num_samples": ("str", "1"),
    "image_resolution": ("str", "512"),
    "ddim_steps": ("int", 20),
    "scale": ("float", 9.0),
    "seed": ("Optional[int]", None),
    "eta": ("float", 0.0),
    "a_prompt": ("str", Request.a_prompt),
    "n_prompt": ("str", Request.n_prompt),
    "detect_resolution": ("int", 512),
}


TYPES = ("canny", "depth", "hed", "mlsd", "normal", "openpose", "scribble", "seg")
BEGUN = ("source", "mask", "denoise", "feather", "outpaint", "second_pass", "second_denoise")
OPTIONS = ("low_threshold", "high_threshold", "bg_threshold", "value_threshold", "distance_threshold")


@pytest.fixture
def predictor(small_model) -> predict.Predictor:
    predictor = predict.Predictor()
    predictor.generator = Generator(small_model, {"seg": ColorDetector()}, name="small", resolution=64)
    predictor.folder = predict.tempfile.TemporaryDirectory()
    return predictor


@pytest.fixture
def house(tmp_path) -> Path:
    save_png(tmp_path / "house.png", draw(256, 256))
    return Path(tmp_path / "house.png")


def test_inputs_are_those_of_the_public_model():
    declared = predict.DECLARED
    annotations = predict.Predictor.predict.__annotations__
    assert {name: (annotations[name], declared[name].default) for name in PUBLIC} == PUBLIC
    first = [*PUBLIC, *OPTIONS, "strength", "guess_mode", "hint", "sampler"]
    assert list(declared)[: len(first)] == first
    assert not set(declared) & {"input_image", "further"} and set(BEGUN) <= set(declared)
    assert (declared["sampler"].choices, declared["sampler"].default) == (list(SAMPLERS), "ddim")
    assert declared["num_samples"].choices == ["1", "4"]
    assert declared["image_resolution"].choices == ["256", "512", "768"]
    assert (declared["scale"].ge, declared["scale"].le) == (0.1, 30.0)
    assert (declared["detect_resolution"].ge, declared["detect_resolution"].le) == (128, 1024)


def test_map_first_then_the_pictures_and_zero_is_a_seed(predictor, house):
    paths = predictor.predict(
        house, "a house", image_resolution="256", ddim_steps=1, seed=0, detect_resolution=256
    )
    assert [path.name for path in paths] == ["output_0.png", "output_1.png"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(paths[0])), colorize(ColorDetector().labels(draw(256, 256)))
    )
    request = read_request(paths[1])
    assert request.seed == 0
    content = paths[1].read_bytes()
    again = predictor.predict(
        house, "a house", image_resolution="256", ddim_steps=1, seed=0, detect_resolution=256
    )
    assert again[1].read_bytes() == content


def test_prompts_for_classes_and_weights_of_words(predictor, house, tmp_path):
    asked = {"image_resolution": "256", "ddim_steps": 1, "seed": 3, "detect_resolution": 256}
    plain = predictor.predict(house, "a house", **asked)[1].read_bytes()
    own = predictor.predict(house, "a house", **asked, class_prompts="house: red brick")[1]
    assert read_request(own).class_prompts == {"house": "red brick"} and own.read_bytes() != plain
    heavy = predictor.predict(house, "a (house:1.5)", **asked, prompt_syntax=True)[1]
    assert read_request(heavy).prompt_syntax and heavy.read_bytes() != plain
    with pytest.raises(RequestError, match="There is no class 'hous': did you mean house"):
        predictor.predict(house, "a house", **asked, class_prompts="hous: red brick")
    with pytest.raises(RequestError, match="class_map must be a file"):
        predictor.predict(house, "a house", **asked, class_map="/etc/passwd")


def test_a_second_control_and_parts_of_run_and_picture(predictor, house, tmp_path):
    Image.fromarray(np.uint8([[255, 0]])).resize((256, 256), 0).save(tmp_path / "left.png")
    left = Path(tmp_path / "left.png")
    asked = {"image_resolution": "256", "ddim_steps": 2, "seed": 3, "detect_resolution": 256}
    plain = predictor.predict(house, "a house", **asked)[1].read_bytes()
    further = {"further_condition": "canny", "further_strength": 0.6, "further_end": 0.5}
    paths = predictor.predict(
        house, "a house", **asked, **further, further_mode="prompt", further_region=left, region=left,
        control_mode="control", control_start=0.5,
    )  # fmt: skip
    assert [path.name for path in paths] == ["output_0.png", "output_1.png", "output_2.png"]
    request = read_request(paths[2])
    (canny,) = request.further
    assert (canny.condition, canny.strength, canny.end, canny.mode) == ("canny", 0.6, 0.5, "prompt")
    assert request.control_start == 0.5 and request.control_mode == "control"
    np.testing.assert_array_equal(request.region, canny.region)
    shown = predictor.generator.condition("canny").show(canny.hint)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), shown)
    again = predictor.predict(house, "a house", **asked, further_condition="none", further_strength=2.0)
    assert again[1].read_bytes() == plain
    own = predictor.predict(house, "a house", **asked, further_condition="canny", further_hint=house)
    assert own[2].read_bytes() != plain
    for wrong in ({"further_condition": "cany"}, {"further_strength": 3}, {"further_hint": "/etc/passwd"}):
        with pytest.raises(RequestError, match=f"^{next(iter(wrong))} must be"):
            predictor.predict(house, "a house", **{**further, **wrong})


def test_a_map_stands_for_the_detector(predictor, house, tmp_path):
    labels = np.full((256, 256), 21, np.uint8)
    save_png(tmp_path / "map.png", colorize(labels))
    paths = predictor.predict(
        house, "", image_resolution="256", ddim_steps=1, hint=Path(tmp_path / "map.png")
    )
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), colorize(labels))
    assert predictor.generator.condition().detector.calls == []


def test_a_source_a_mask_and_a_second_pass(predictor, house, tmp_path):
    mask = np.zeros((256, 256), np.uint8)
    mask[:, :128] = 255
    save_png(tmp_path / "mask.png", mask)
    given = {"image_resolution": "256", "ddim_steps": 2, "seed": 0, "detect_resolution": 256}
    begun = {"source": house, "mask": Path(tmp_path / "mask.png"), "feather": 0}
    picture = np.asarray(Image.open(predictor.predict(house, "a house", **given, **begun)[1]))
    np.testing.assert_array_equal(picture[:, 128:], draw(256, 256)[:, 128:])
    assert (picture[:, :128] != draw(256, 256)[:, :128]).mean() > 0.5
    wide = predictor.predict(house, "a house", source=house, outpaint="left=64", denoise=0.5, **given)
    assert Image.open(wide[1]).size == (320, 256)
    large = predictor.predict(house, "a house", second_pass="1.5", second_denoise=0.5, **given)
    assert Image.open(large[1]).size == (384, 384)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_samples": "2"},
        {"image_resolution": "64"},
        {"scale": 31.0},
        {"scale": float("nan")},
        {"detect_resolution": 64},
        {"scale": "9"},
        {"scale": None},
        {"seed": -1},
        {"seed": "1"},
        {"image": "/etc/passwd"},
        {"image": None},
        {"hint": "/etc/passwd"},
        {"ddim_steps": 0},
        {"eta": 2.0},
        {"source": "/etc/passwd"},
        {"mask": "/etc/passwd"},
        {"denoise": 1.5},
        {"feather": -1},
        {"outpaint": "left"},
        {"second_pass": "3"},
    ],
    ids=str,
)
def test_wrong_inputs_are_refused_by_name(predictor, house, wrong):
    with pytest.raises(RequestError, match=f"^{next(iter(wrong))} must be"):
        predictor.predict(**{"image": house, "prompt": "a house", **wrong})


def test_names_of_files_are_not_looked_at(predictor, house):
    told = []
    for name in (str(house), f"{house}.no"):
        with pytest.raises(RequestError) as caught:
            predictor.predict(name, "a house")
        told.append(str(caught.value).replace(name, "NAME"))
    assert told[0] == told[1]


def test_a_hint_that_no_run_can_use_is_refused(predictor, house, tmp_path):
    Image.new("L", (5600, 5600)).save(tmp_path / "map.png")
    with pytest.raises(PictureError, match="5600x5600 pixels are more than the 8 megapixels allowed"):
        predictor.predict(house, "", hint=Path(tmp_path / "map.png"))


def test_a_type_that_does_not_exist_is_refused_before_anything_loads(monkeypatch):
    monkeypatch.setenv("CONTROLNET_TYPE", "sketch")
    with pytest.raises(ConditionError, match=r"no condition 'sketch'; known are canny"):
        predict.Predictor().setup()


@contextmanager
def served(predictor: str, model_options: list[str], folder, **more: str) -> Iterator[str]:
    """Cog's HTTP server over a predictor, in a process of its own; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ["PATH"]]
        ),  # Cog starts "python"
        "PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "COG_PREDICT_TYPE_STUB": predictor,
        "CONTROLNET_OPTIONS": shlex.join(model_options),
        **more,
    }
    log = (folder / "log").open("w+b")
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(400):
            time.sleep(0.3)
            try:
                status = httpx.get(f"{url}/health-check").json()["status"]
            except httpx.TransportError:
                status = "STARTING"
            if status != "STARTING" or process.poll() is not None:
                break
        log.seek(0)
        assert status == "READY", log.read().decode()[-2000:]
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture(scope="module")
def cog_server(model_options, tmp_path_factory) -> Iterator[str]:
    """The predictor over the small model with a real detector."""
    with served("predict.py:Predictor", model_options, tmp_path_factory.mktemp("cog")) as url:
        yield url


@pytest.fixture(scope="module")
def server_of_every_type(model_options, tmp_path_factory) -> Iterator[tuple[str, LocalPath]]:
    """A predictor that is set up as the type that a file names, and that file."""
    folder = tmp_path_factory.mktemp("cog")
    (folder / "type").write_text("seg")
    with served(
        "tests/front/every_type.py:EveryType", model_options, folder, TYPE_FILE=str(folder / "type")
    ) as url:
        yield url, folder / "type"


def data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_of(url: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(url.partition(",")[2]))


OWN = {
    "canny": {"low_threshold": 20, "high_threshold": 60},
    "normal": {"bg_threshold": 0.2},
    "mlsd": {"value_threshold": 0.05, "distance_threshold": 2.0},
}
"""Inputs that only one type has."""


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_through_cogs_own_server(server_of_every_type, kind):
    url, wanted = server_of_every_type
    wanted.write_text(kind)
    settings = {
        "prompt": "a house",
        "image_resolution": "256",
        "ddim_steps": 1,
        "seed": 3,
        **OWN.get(kind, {}),
    }
    picture = drawing() if kind == "scribble" else draw(256, 256)
    settings |= {"image": data_url(picture), "detect_resolution": 256}
    answer = httpx.post(f"{url}/predictions", json={"input": settings}, timeout=300).json()
    assert answer["status"] == "succeeded", answer
    shown, result = map(picture_of, answer["output"])
    request = read_request(result)
    assert request.condition == predict.TYPES.get(kind, kind)
    assert request.options == OWN.get(kind, request.options)
    condition = find_condition(request.condition)(stand_in(request.condition), "cpu")
    expected = condition.hint(picture, 256, 256, **request.options)
    np.testing.assert_array_equal(request.hint, expected)
    np.testing.assert_array_equal(np.asarray(Image.open(shown)), condition.show(expected))
    assert Image.open(result).size == (256, 256) and expected.min() < expected.max()


def test_through_cogs_own_server(cog_server):
    settings = {"prompt": "a house", "image_resolution": "256", "ddim_steps": 1, "seed": 3}
    settings["image"] = data_url(draw(256, 256))

    def ask(**changes) -> dict:
        return httpx.post(
            f"{cog_server}/predictions", json={"input": {**settings, **changes}}, timeout=300
        ).json()

    answer = ask()
    assert answer["status"] == "succeeded", answer
    detected, result = map(picture_of, answer["output"])
    assert Image.open(detected).size == Image.open(result).size == (256, 256)
    assert read_request(result).seed == 3
    assert ask()["output"] == answer["output"]
    refused = ask(scale=99.0)
    assert refused["status"] == "failed" and "scale must be from 0.1 to 30.0" in refused["error"]
    for wrong, why in (
        ({"image": "/etc/passwd"}, "image must be a file: a data: URL or an http(s) URL, got '/etc/passwd'."),
        ({"image": "/nothing/there"}, "image must be a file: a data: URL or an http(s) URL"),
        ({"image": "file:///etc/passwd"}, "image must be a file"),
        ({"image": ["/etc/passwd"]}, "image must be a file"),
        ({"image": None}, "image must be a file"),
        ({"hint": "/etc/passwd"}, "hint must be a file"),
        ({"scale": "9"}, "scale must be a number, got '9'."),
        ({"prompt": None}, "prompt must be text, got None."),
    ):
        refused = ask(**wrong)
        assert refused["status"] == "failed" and why in refused["error"], (wrong, refused)
