"""Opens weights where they lie: in one file, in shards, or in a folder as diffusers and peft write it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ldm.recipes import Entry, Opened
from ldm.weight_formats import WeightsError, open_weights

_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")
_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".fp16.safetensors",
    ".bin",
    ".bin.index.json",
    ".fp16.bin",
)
_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2", "transformer", "controlnet")
"""The folders of a diffusers pipeline that hold weights."""


def open_raw(path: Path) -> Opened:
    """A file's or folder's state dict under its own names; entries of a pipeline's folders stand below the
    folder's name (``unet.conv_in.weight``).

    Raises:
        WeightsError: there is no such file, it cannot be read, or the folder holds no weights.
    """
    if not path.is_dir():
        return open_weights(path)
    if weights := _weights_in(path):
        return open_weights(weights)
    state: dict[str, Entry] = {}
    is_mapped = True
    for folder in _FOLDERS:
        if weights := _weights_in(path / folder):
            part, part_is_mapped = open_weights(weights)
            state.update((f"{folder}.{key}", entry) for key, entry in part.items())
            is_mapped = is_mapped and part_is_mapped
    if not state:
        raise WeightsError(
            f"{path}: this folder holds no weights that are known by their name (such as "
            f"{_NAMES[0]}.safetensors, or unet, vae and text_encoder in it); give the path of a file"
        )
    return state, is_mapped


def _weights_in(folder: Path) -> Path | None:
    places = (folder / f"{name}{ending}" for ending in _ENDINGS for name in _NAMES)
    return next((place for place in places if place.is_file()), None)


def facts_of(path: Path) -> dict[str, Any]:
    """What is said about weights beside their tensors: the metadata of a .safetensors file and the
    parameterization of a YAML of the same name; of a folder its config.json, and those of its scheduler and
    VAE (without lists and dictionaries).
    """
    if not path.is_dir():
        return {**_yaml_facts(path.with_suffix(".yaml")), **_metadata(path)}
    places = ("config.json", "adapter_config.json", "scheduler/scheduler_config.json", "vae/config.json")
    facts: dict[str, Any] = {}
    for place in places:
        facts |= _json_facts(path / place)
    weights = _weights_in(path)
    return {**(_metadata(weights) if weights else {}), **facts}


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception:  # whatever ails the file, who reads its tensors says it better
        return {}


def _json_facts(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    plain = (str, int, float, bool)
    return {k: v for k, v in content.items() if isinstance(v, plain)} if isinstance(content, Mapping) else {}


def _yaml_facts(path: Path) -> dict[str, Any]:
    """Not parsed: the YAML files beside checkpoints are of other programs."""
    try:
        found = re.search(r"^\s*parameterization\s*:\s*[\"']?(\w+)", path.read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return {}
    return {"parameterization": found[1]} if found else {}
