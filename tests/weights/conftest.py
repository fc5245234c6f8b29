"""A small model of SD 1.x's form and one of SD 2.x's, with their weights, for all tests of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from weight_samples import State, make_state, write_config


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def state(config: Path) -> State:
    return make_state(config)


@pytest.fixture(scope="session")
def config_v21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), "unet_v21", open_clip=True)


@pytest.fixture(scope="session")
def state_v21(config_v21: Path) -> State:
    return make_state(config_v21)
