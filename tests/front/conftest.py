"""A small model with the golden weights, on disk and in memory, and a detector that needs none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, tiny_config
from omegaconf import OmegaConf

from annotator.ade20k import CLASSES, PALETTE
from cldm.generate import Generator
from ldm.util import instantiate_from_config
from ldm.weights import save_state_dict

SKY, GRASS, HOUSE, WATER = (CLASSES.index(name) for name in ("sky", "grass", "house", "water"))


class ColorDetector:
    """Names a pixel after the nearest of four colours: exact on the pictures below, deterministic on any."""

    labels_at = np.array([SKY, GRASS, HOUSE, WATER], np.uint8)
    colors = np.array([[120, 180, 250], [60, 160, 60], [190, 60, 50], [30, 60, 160]], np.int32)

    def __init__(self):
        self.calls: list[tuple[int, ...]] = []

    def labels(self, picture: np.ndarray) -> np.ndarray:
        self.calls.append(picture.shape)
        distance = ((picture[:, :, None].astype(np.int32) - self.colors) ** 2).sum(axis=-1)
        return self.labels_at[distance.argmin(axis=-1)]


def draw(height: int = 64, width: int = 64) -> np.ndarray:
    """Sky over grass with a house, uint8 RGB, in the colours that `ColorDetector` knows."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2] = ColorDetector.colors[0]
    picture[height // 2 :] = ColorDetector.colors[1]
    picture[height // 4 : height * 3 // 4, width // 4 : width // 2] = ColorDetector.colors[2]
    return picture


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
    return Generator(small_model, ColorDetector(), name="small", resolution=64)


@pytest.fixture
def house_map() -> np.ndarray:
    """The map of `draw()`."""
    return ColorDetector().labels(draw())


@pytest.fixture
def painted() -> Callable[..., np.ndarray]:
    return draw


@pytest.fixture
def palette() -> np.ndarray:
    return PALETTE
