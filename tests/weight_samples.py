"""Small weights in every form that people have, with the key names of the real files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from golden_data import load_golden, recipe_state, tiny_config
from omegaconf import OmegaConf
from torch import Tensor

from cldm.model import create_model
from ldm.weights import save_state_dict

State = dict[str, Tensor]

UNET, VAE, TEXT, CONTROL = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.",
    "control_model.",
)
CLIP = f"{TEXT}transformer.text_model."
OPEN_CLIP = f"{TEXT}model."
FIRST = f"{UNET}input_blocks.0.0.weight"
QUERY = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def write_config(
    folder: Path, version: str = "unet_v15", *, open_clip: bool = False, **params: object
) -> Path:
    """The small model of a golden case as YAML; ``open_clip``: with SD 2.x's text encoder, three blocks."""
    config = tiny_config(load_golden(version)[1])
    if open_clip:
        config.params.cond_stage_config = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"layer": "penultimate", "text_config": {"width": 32, "heads": 4, "layers": 3}},
        }
    config.params.update(params)
    path = folder / f"{version}{'_open_clip' if open_clip else ''}.yaml"
    OmegaConf.save({"model": config}, path)
    return path


def make_state(config: Path) -> State:
    """The recipe's weights for a definition; schedules as the model computes them."""
    model = create_model(config)
    return {**model.state_dict(), **recipe_state(dict(model.named_parameters()))}


def only(state: Mapping[str, Tensor], *prefixes: str) -> State:
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def without(state: Mapping[str, Tensor], *prefixes: str) -> State:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def renamed(state: Mapping[str, Tensor], old: str, new: str) -> State:
    """Every key that begins with ``old`` begins with ``new`` instead."""
    return {new + key[len(old) :] if key.startswith(old) else key: tensor for key, tensor in state.items()}


def cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def plus(state: Mapping[str, Tensor], amount: float, *prefixes: str) -> State:
    """Only the entries under some prefixes, with a number added: another finetune's."""
    return {key: tensor + amount for key, tensor in only(state, *prefixes).items()}


def save(state: Mapping[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_state_dict(dict(state), path)
    return path


def save_empty(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """A .safetensors file of zeros at full size that takes no room: a header, and a hole."""
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def lora_factors(weight: Tensor, rank: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """down ``[rank, in, ...]`` and up ``[out, rank, 1 ...]`` for a weight, small random numbers."""
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (weight.ndim - 2)
    down = torch.randn(rank, *weight.shape[1:], generator=generator) / 10
    up = torch.randn(weight.shape[0], rank, *ones, generator=generator) / 10
    return down, up
