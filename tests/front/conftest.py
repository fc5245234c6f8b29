"""A small model with the golden weights, on disk and in memory, and a detector that needs none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from front.in_browser import CHROMIUM, visit
from front.small_page import ColorDetector, draw, start
from golden_data import fill_by_recipe, load_golden, tiny_config
from omegaconf import OmegaConf

from controlnet.generation.generator import Generator
from controlnet.generation.png import save_png
from ldm.util import instantiate_from_config
from ldm.weights import save_state_dict

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ModelOnDisk:
    config: Path
    weights: Path


@pytest.fixture(scope="session")
def model_files(tmp_path_factory) -> ModelOnDisk:
    """YAML and weights of the golden ``sampling`` model, which makes pictures of 64 pixels."""
    folder = tmp_path_factory.mktemp("model")
    _, case = load_golden("sampling")
    config = OmegaConf.create({"model": tiny_config(case)})
    config.model.params.image_size = 8
    OmegaConf.save(config, folder / "small.yaml")
    model = fill_by_recipe(instantiate_from_config(config.model))
    save_state_dict(model.state_dict(), folder / "small.safetensors")
    return ModelOnDisk(folder / "small.yaml", folder / "small.safetensors")


@pytest.fixture(scope="session")
def small_model(model_files) -> torch.nn.Module:
    from cldm.model import load_model

    return load_model(model_files.config, model_files.weights)


@pytest.fixture
def generator(small_model) -> Generator:
    return Generator(small_model, {"seg": ColorDetector()}, name="small", resolution=64)


@pytest.fixture
def house_map() -> np.ndarray:
    """The map of `draw()`."""
    return ColorDetector().labels(draw())


@pytest.fixture(scope="session")
def server(small_model, tmp_path_factory) -> Iterator[str]:
    """The page over the small model, with one example scene."""
    from controlnet.page.examples import load_examples

    folder = tmp_path_factory.mktemp("examples")
    save_png(folder / "house.png", draw())
    save_png(folder / "map.png", ColorDetector().labels(draw()))
    line = {"picture": "house.png", "hint": "map.png", "prompt": "an example house"}
    (folder / "examples.jsonl").write_text(json.dumps(line))
    small = Generator(small_model, {"seg": ColorDetector()}, name="small", resolution=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlnet.page.app.EXAMPLES", folder)
        yield from start(small, "--queue-size", "100", examples=load_examples(folder))


@pytest.fixture(scope="session")
def model_options(model_files, tmp_path_factory) -> list[str]:
    """Command-line options for the small model, with a real mmseg detector of random weights."""
    from annotator.uniformer.segmentor import build_segmentor

    config = ROOT / "configs" / "annotator" / "upernet_tiny.py"
    weights = tmp_path_factory.mktemp("detector") / "upernet.safetensors"
    torch.manual_seed(0)
    save_state_dict(build_segmentor(config).state_dict(), weights)
    return [
        *("--model", str(model_files.config), "--weights", str(model_files.weights), "--device", "cpu"),
        *("--detector-weights", str(weights), "--detector-config", str(config)),
        *("--precision", "fp32"),  # also in processes of their own, on every processor
    ]


@pytest.fixture(scope="module")
def browser():
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(1280, 900)])
def tab(request, browser, server) -> Iterator:
    """The page in a fresh session. A script error in it fails the test."""
    errors: list[str] = []
    page = visit(browser, server, request.param, errors)
    yield page
    page.context.close()
    assert not errors
