"""Models from a definition and a weights file: one way in for every script.

Source: cldm/model.py of the original.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cldm.convert import control_part
from ldm.definitions import check_sizes, one_line_errors, read_yaml
from ldm.util import instantiate_from_config
from ldm.weights import WeightsError, load_file_into, map_state_dict, read_state_dict

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

logger = logging.getLogger(__name__)

HARMLESS_KEYS = ("model_ema.*", "first_stage_model.loss.*", "*.position_ids")
"""Keys of released checkpoints that no model of ours takes: averages, the VAE's training loss, a constant."""

_CONTEXT_WEIGHT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_FIRST_WEIGHT = "model.diffusion_model.input_blocks.0.0.weight"
_VERSIONS: dict[int | None, str] = {
    768: "Stable Diffusion 1.x, models/cldm_v15.yaml",
    1024: "Stable Diffusion 2.x, models/cldm_v21.yaml",
}


def get_state_dict(d: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict of a checkpoint that may have it under "state_dict"."""
    return d.get("state_dict", d)


def load_state_dict(ckpt_path: str | Path, location: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a weights file, safely read; see :func:`ldm.weights.read_state_dict`."""
    state = read_state_dict(ckpt_path, device=location)
    logger.info("Loaded state_dict from [%s]", ckpt_path)
    return state


def create_model(config_path: str | Path) -> ControlLDM:
    """Build the model that a YAML file defines, on the CPU, with random weights.

    Raises:
        DefinitionError: the file is missing, is no model definition, or none that can be built; one line that
            names it.
    """
    definition = load_config(config_path).model
    with one_line_errors(config_path):
        model = instantiate_from_config(definition)
    logger.info("Loaded model config from [%s]", config_path)
    return model


def load_model(
    config_path: str | Path,
    weights_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    control: str | Path | None = None,
) -> ControlLDM:
    """Build a model around the weights of a file, ready for sampling.

    No weight is initialised or in memory twice: the peak is the model's size in ``dtype`` and an eighth of
    the file. The weights are copies, so the file may be changed or deleted while the model lives.

    Args:
        config_path: YAML model definition.
        weights_path: a whole model, or with ``control`` Stable Diffusion without control.
        device: where the model goes.
        dtype: of the weights; None keeps float32 whatever the file has. Noise schedules always stay float32.
        control: a file with a control, which takes the place of the weights' own: ControlNet 1.1, training's
            control-only checkpoints, or a whole model.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: the file cannot be read or does not fit the definition; the text says what it seems to
            be.
        DefinitionError: the definition is at fault.
    """
    with parameters_on_meta():
        model = create_model(config_path)
    if dtype is not None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    computed = [name for name, buffer in model.named_buffers() if not buffer.is_meta]
    elsewhere = {} if control is None else dict.fromkeys(_control_keys(control), control)
    advice = partial(advice_for, model.state_dict(), needs_control=control is None)
    load_file_into(
        model, weights_path, device, elsewhere=elsewhere, ignore=HARMLESS_KEYS, optional=computed, hint=advice
    )
    return model.to(device).eval()


def _control_keys(path: str | Path) -> list[str]:
    try:
        return list(control_part(map_state_dict(path)))
    except WeightsError as error:
        raise error if str(path) in str(error) else WeightsError(f"{path}: {error}") from None


def load_config(config_path: str | Path) -> DictConfig:
    """Read a YAML model definition, and check that there is a ``model`` with a ``target`` in it, no larger
    than models are.

    Raises:
        DefinitionError: one line that names the file; see :mod:`ldm.definitions`.
    """
    config = read_yaml(config_path)
    model = config.get("model")
    with one_line_errors(config_path):
        if not isinstance(model, DictConfig) or "target" not in model:
            raise ValueError("no model definition; expected `model:` with a `target:` in it")
        check_sizes(config)
    return config


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules whose parameters have shapes and no memory, while buffers (schedules, masks) are real.

    Only modules that this thread builds are concerned: torch's hook is one for the process.
    """
    thread = threading.get_ident()

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or threading.get_ident() != thread:
            return None  # leaves it as it is
        return nn.Parameter(parameter.data.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(cast(Any, to_meta))  # its stubs know no result
    try:
        yield
    finally:
        hook.remove()


def advice_for(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], needs_control: bool = True) -> str:
    """What the weights ``state`` seem to be, given that they do not fit ``wanted``, and what to do with
    them.
    """
    keys = state.keys()
    if any("lora" in key.lower() for key in keys):
        return "The file is a LoRA: a small change to a model, not a model. Merge it into a checkpoint first."
    if _has(keys, "down_blocks.", "unet.", "controlnet_cond_embedding."):
        return (
            "The file has the layout of diffusers; get the original .ckpt, .pth or .safetensors checkpoint."
        )
    if _has(keys, "conditioner.embedders."):
        return "The file is Stable Diffusion XL, which this model definition is not for."
    if not _has(keys, "model.diffusion_model."):
        if _has(keys, "control_model."):
            return (
                "The file is a ControlNet alone. Give Stable Diffusion as the weights and this file as "
                "control, or "
                "put both together with tool_merge_control.py."
            )
        if _has(keys, "decoder.", "first_stage_model."):
            return "The file is a VAE alone, not a whole model."
        return (
            "The file is no Stable Diffusion; a whole model has keys that begin with model.diffusion_model."
        )
    found, expected = (_width(tensors, _CONTEXT_WEIGHT) for tensors in (state, wanted))
    if found != expected:
        known = _VERSIONS.get(found, f"a model with text embeddings {found} wide")
        return f"The file is {known}; the model definition is for {_VERSIONS.get(expected, expected)}."
    if _width(state, _FIRST_WEIGHT) == 9:
        return "The file is an inpainting model, whose UNet takes 9 channels."
    if needs_control and not _has(keys, "control_model."):
        return (
            "The file is Stable Diffusion without control: put a ControlNet in with tool_merge_control.py, "
            "or start a "
            "new one with tool_add_control.py."
        )
    return "Check that the model definition and the file belong together."


def _has(keys: Collection[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def _width(state: Mapping[str, Tensor], key: str) -> int | None:
    return state[key].shape[1] if key in state and state[key].ndim > 1 else None
