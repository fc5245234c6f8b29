"""Every condition by way of the API and the command lines: one hint, whoever asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from front.small_page import draw, drawing, stand_in, start
from golden_data import load_golden
from gradio_client import Client, handle_file
from PIL import Image

from controlnet.commands import annotate as tool_annotate
from controlnet.commands import generate as tool_generate
from controlnet.conditions import Condition, all_conditions, find_condition
from controlnet.generation.batch import MANIFEST
from controlnet.generation.generator import Generator
from controlnet.generation.png import read_request, save_png

CPU = torch.device("cpu")
OTHERS = {"openpose": "pose2image", "scribble_interactive": "scribble2image_interactive"}
CHANGED = {
    "canny": {"low_threshold": 30, "high_threshold": 90},
    "hough": {"value_threshold": 0.05, "distance_threshold": 3.5},
    "normal": {"bg_threshold": 0.2},
}
"""Options that are not the defaults."""


@pytest.fixture(params=list(all_conditions()))
def name(request) -> str:
    return request.param


@pytest.fixture
def condition(name) -> Condition:
    """With the detector that the front ends have in these tests."""
    return find_condition(name)(stand_in(name), CPU)


@pytest.fixture
def picture(name, tmp_path) -> Path:
    """A picture file of 64 pixels in which the condition finds something."""
    array = {"scribble": drawing(), "scribble_interactive": 255 - drawing()}.get(name, draw())
    (tmp_path / "in").mkdir()
    save_png(tmp_path / "in" / "picture.png", array)
    return tmp_path / "in" / "picture.png"


@pytest.fixture
def expected(name, condition, picture) -> np.ndarray:
    """The hint, with `CHANGED` options."""
    hint = condition.hint(np.asarray(Image.open(picture)), 64, 64, **CHANGED.get(name, {}))
    assert hint.min() < hint.max()
    return hint


@pytest.fixture(scope="module")
def every(small_model) -> Generator:
    detectors = {name: detector for name in all_conditions() if (detector := stand_in(name)) is not None}
    return Generator(small_model, detectors, name="small", resolution=64, device=CPU)


@pytest.fixture(scope="module")
def client(every) -> Iterator[Client]:
    """Of a page that is opened on the default condition."""
    for url in start(every):
        yield Client(url, verbose=False)


def shown(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_detect_and_generate_take_a_condition_and_options(client, name, condition, picture, expected):
    options = CHANGED.get(name, {})
    path, classes = client.predict(handle_file(picture), 64, name, options, api_name="/detect")
    np.testing.assert_array_equal(shown(path), condition.control(expected))
    assert bool(classes) == (name == "seg")
    settings = {"ddim_steps": 1, "seed": 4}
    gallery = client.predict(
        handle_file(picture), "a house", name, options, None, settings, api_name="/generate"
    )
    hint, result = (item["image"] for item in gallery)
    np.testing.assert_array_equal(shown(hint), condition.show(expected))
    request = read_request(result)
    assert (request.condition, request.seed) == (name, 4) and options.items() <= request.options.items()
    np.testing.assert_array_equal(request.hint, expected)


def test_process_has_the_originals_inputs_in_its_order(every, name, condition, picture, expected):
    app = OTHERS.get(name, f"{name}2image")
    inputs = load_golden("apps")[1]["process_parameters"].get(app)
    for url in start(every, condition=name):
        client = Client(url, verbose=False)
        endpoint = client.view_api(return_format="dict")["named_endpoints"]["/process"]
        names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert inputs is None or names == [*inputs, "hint"]
        settings = {"ddim_steps": 1, "image_resolution": 64, "detect_resolution": 64, "seed": 4}
        given = {key: value for key, value in {**settings, **CHANGED.get(name, {})}.items() if key in names}
        gallery = client.predict(handle_file(picture), "a house", api_name="/process", **given)
    hint, result = (item["image"] for item in gallery)
    np.testing.assert_array_equal(shown(hint), condition.show(expected))
    np.testing.assert_array_equal(read_request(result).hint, expected)


@pytest.fixture
def found_here(monkeypatch) -> None:
    """The command lines find a detector where none ships."""
    for name in ("openpose", "seg"):
        detector = stand_in(name)
        monkeypatch.setattr(find_condition(name), "make_detector", lambda self, d=detector: d)


def flags(name: str) -> list[str]:
    given = CHANGED.get(name, {}).items()
    return [text for key, value in given for text in (f"--{key.replace('_', '-')}", str(value))]


def run(tool: Any, *arguments: Any) -> int:
    return tool.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", CHANGED, indirect=True)
def test_tool_generate_with_options(name, condition, picture, expected, tmp_path, model_options):
    out = tmp_path / "out"
    settings = ["--prompt", "a house", "--ddim-steps", 1, "--detect-resolution", 64, "--no-measure"]
    arguments = [picture.parent, out, "--condition", name, *flags(name), *settings, *model_options]
    assert run(tool_generate, *arguments) == 0
    np.testing.assert_array_equal(shown(out / "picture_map.png"), condition.show(expected))
    request = read_request(out / "picture.png")
    assert (request.condition, request.options) == (name, CHANGED[name])
    np.testing.assert_array_equal(request.hint, expected)


def test_lines_of_all_conditions_in_one_run(found_here, tmp_path, model_options):
    save_png(tmp_path / "picture.png", draw())
    conditions = {
        name: known(stand_in(name), CPU) for name, known in all_conditions().items() if name != "seg"
    }
    lines = [
        {"image": "picture.png", "name": name, "condition": name, "prompt": "a house", "ddim_steps": 1}
        for name in conditions
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(tool_generate, tmp_path / "lines.jsonl", tmp_path / "out", *model_options) == 0
    entries = map(json.loads, (tmp_path / "out" / MANIFEST).read_text().splitlines())
    entries = {entry["name"]: entry for entry in entries}
    for name, condition in conditions.items():
        request = read_request(tmp_path / "out" / f"{name}.png")
        hint = condition.hint(draw(), 64, 64)
        np.testing.assert_array_equal(request.hint, hint)
        score = condition.score(hint, hint) if condition.is_measured else None
        measures = [entry["measure"] for entry in entries[name]["scores"]]
        assert request.condition == name and measures == ([score.measure] if score else [])


def test_tool_annotate_writes_what_training_reads(found_here, name, condition, picture, expected, tmp_path):
    if name == "seg":
        pytest.skip("its detector is an option: test_annotate_folder.py")
    out = tmp_path / "out"
    how = ["--condition", name, *flags(name), "--resolution", 64, "--prompts", "--device", "cpu"]
    assert run(tool_annotate, picture.parent, out, *how) == 0
    np.testing.assert_array_equal(shown(out / "hints" / "picture.png"), condition.control(expected))
    assert (out / "prompt.json").is_file()
