"""What the tests compare with: recorded outputs of the original, and the recipe of the weights that made
them.

`tests/golden/README.md` says what each file holds and where its numbers come from.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"


def load_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `case` (config, text_config, salt, what ...) of ``tests/golden/{name}.safetensors``."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        case = json.loads(file.metadata()["case"])
        return {key: file.get_tensor(key) for key in file.keys()}, case  # noqa: SIM118


def released_keys(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype by key, in the released order, of ``cldm_v15``, ``cldm_v21`` or
    ``upernet_global_small``.
    """
    listed = json.loads((GOLDEN / f"keys_{name}.json").read_text())
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in listed.items()}


def recipe_tensor(key: str, shape: torch.Size | tuple[int, ...], salt: int = 0) -> torch.Tensor:
    """The float32 tensor that the recipe gives the released state-dict key `key`."""
    generator = np.random.RandomState((zlib.crc32(key.encode()) + salt) % 2**32)
    noise = generator.standard_normal(math.prod(shape)).astype(np.float32).reshape(tuple(shape))
    if key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif key.endswith("running_mean"):
        value = 0.1 * noise
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.float32(math.prod(shape[1:])))
    elif key.endswith(("weight", "layer_scale")):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill_by_recipe(module: torch.nn.Module, salt: int = 0, prefix: str = "") -> torch.nn.Module:
    """Fill all parameters and BatchNorm statistics of `module` in place, by released key, and return it.

    `prefix` is the place of `module` in the released model where it stands alone, e.g. ``"control_model."``.
    Schedule buffers, ``logvar``, ``position_ids`` and ``num_batches_tracked`` keep their values, as in the
    original's run.
    """
    with torch.no_grad():
        for key, tensor in module.state_dict(prefix=prefix, keep_vars=True).items():
            is_weight = isinstance(tensor, torch.nn.Parameter) and not key.endswith("logvar")
            if is_weight or key.endswith(("running_mean", "running_var")):
                tensor.copy_(recipe_tensor(key, tensor.shape, salt))
    return module


def recipe_state(state: Mapping[str, torch.Tensor], salt: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of the same keys and shapes as `state` (weights only: no buffers), filled by the
    recipe.
    """
    return {key: recipe_tensor(key, tensor.shape, salt) for key, tensor in state.items()}


def tiny_config(case: Mapping[str, Any]) -> DictConfig:
    """The case's small model, as `instantiate_from_config` takes it, with its small text model filled in."""
    config = OmegaConf.create(dict(case["config"]))
    cond_stage = config.params.cond_stage_config
    cond_stage.params = {**cond_stage.get("params", {}), "text_config": case["text_config"]}
    return config


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖, the measure of the tolerances; raises where the shapes differ."""
    if actual.shape != expected.shape:
        raise ValueError(f"got shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm())
