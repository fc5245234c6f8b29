"""Fixtures of the whole suite. Tests run offline, on at most two threads, and each from the same seed."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    GRADIO_ANALYTICS_ENABLED="False",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
)

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import golden_data
import numpy as np
import pytest
import torch

import ldm  # noqa: F401 - makes torchvision importable, which Lightning imports

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _any_processor() -> Iterator[None]:
    """``auto`` is fp32 on every CPU, so that no test depends on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlnet.generation.devices.computes_bf16", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """A connection to any other machine is an error, in every test."""
    connect = socket.socket.connect

    def connect_here_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"tests must not reach the network, and this one tried {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here_only)
        yield


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """``golden("unet_v15")`` gives (tensors, case): see `golden_data.load_golden`."""
    return golden_data.load_golden


@pytest.fixture(scope="session")
def fill_by_recipe() -> Callable[..., torch.nn.Module]:
    """``fill_by_recipe(module, salt=0, prefix="")``: see `golden_data.fill_by_recipe`."""
    return golden_data.fill_by_recipe


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """``tiny_config(case)``: see `golden_data.tiny_config`."""
    return golden_data.tiny_config
