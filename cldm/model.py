"""Models from a definition and a weights file: one way in for every script.

Source: cldm/model.py of the original.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cldm.assemble import (
    HARMLESS_KEYS,
    Assembly,
    Sources,
    context_width,
    control_keys,
    open_as,
    open_control,
)
from cldm.convert import counterpart
from ldm.definitions import check_sizes, one_line_errors, read_yaml
from ldm.layouts import CONTROL, UNET
from ldm.layouts.embedding import read_embedding
from ldm.layouts.recognise import Kind, expect, recognise, version_name
from ldm.modules.diffusionmodules.util import make_beta_schedule
from ldm.recipes import Entry, Opened
from ldm.util import instantiate_from_config
from ldm.weights import WeightsError, load_file_into, load_opened_into, read_state_dict

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM, ControlNet

logger = logging.getLogger(__name__)


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
    vae: str | Path | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    embeddings: Sequence[str | Path] = (),
) -> ControlLDM:
    """Build a model around the weights of files or folders, ready for sampling.

    No weight is initialised or in memory twice: the peak is the model's size in ``dtype`` and an eighth of
    the file. The weights are copies, so the files may be changed or deleted while the model lives. Noise
    schedules are always computed from the definition, whatever a file holds.

    Args:
        config_path: YAML model definition.
        weights_path: a whole model, or with ``control`` Stable Diffusion without control; a file in the
            original's layout, or a folder of diffusers.
        device: where the model goes.
        dtype: of the weights; None keeps float32 whatever the file has. Noise schedules always stay float32.
        control: a file or folder with a control, which takes the place of the weights' own: ControlNet 1.1,
            diffusers', webui's differences, training's control-only checkpoints, or a whole model.
        vae: a VAE that takes the place of the weights' own.
        loras: LoRA files, and how much of each: 1 as it was trained.
        embeddings: textual inversion files; a prompt uses each by the name of its file.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: a file cannot be read, does not fit, or holds NaN; the text says what it is.
        DefinitionError: the definition is at fault.
    """
    sources = Sources(
        Path(weights_path),
        None if control is None else Path(control),
        None if vae is None else Path(vae),
        tuple((Path(path), weight) for path, weight in loras),
    )
    model = _load_assembled(config_path, sources, device, dtype)
    for path in embeddings:
        expect(Path(path), recognise(path), "embedding")
        model.cond_stage_model.add_embedding(*read_embedding(Path(path)))
    return model.to(device).eval()


def _load_assembled(
    config_path: str | Path, sources: Sources, device: str | torch.device, dtype: torch.dtype | None
) -> ControlLDM:
    kind = recognise(sources.weights)
    model = build_for(config_path, kind)
    _cast_parameters(model, dtype)
    wanted = model.state_dict()
    if not any(key.startswith(UNET) for key in wanted):  # an autoencoder by itself
        if sources.files != [sources.weights]:
            raise WeightsError(
                f"{config_path}: a model without a UNet takes no control, VAE or LoRA beside it"
            )
        load_file_into(model, sources.weights, device, ignore=HARMLESS_KEYS)
        return model
    assembly = Assembly(sources, kind, wanted, config_path)
    computed = [name for name, buffer in model.named_buffers() if not buffer.is_meta]
    schedule = schedule_names(model)
    load_opened_into(model, assembly.open, sources.files, device, keep=schedule, optional=computed)
    if hasattr(model, "control_model"):
        _pool_if_recognised(model.control_model, assembly.control_kind, sources.control or sources.weights)
    return model


def load_control(
    config_path: str | Path,
    control: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    base: str | Path | None = None,
) -> ControlNet:
    """A control by itself, to steer a model that is in memory already: so a base is held once, however many
    controls there are.

    A condition names its control: ``{"c_concat": [hint], "c_crossattn": [context], "control_model":
    network}``.

    Args:
        config_path: YAML definition of the model that it steers.
        control: a file or folder, as in :func:`load_model`.
        base: the model's weights file, which only a difference file needs.

    Raises:
        WeightsError: as :func:`load_model`; also for a file that brings a decoder of its own.
    """
    path = Path(control)
    kind = recognise(path)
    if "control" not in kind.parts:
        expect(path, kind, "control")
    definition = _control_definition(config_path)
    with parameters_on_meta(), one_line_errors(config_path):
        network = instantiate_from_config(definition)
    holder = nn.ModuleDict({CONTROL.removesuffix("."): network})
    _cast_parameters(holder, dtype)
    wanted = holder.state_dict()
    width = context_width(wanted)
    if width != kind.width:
        raise WeightsError(f"{path}: this is {kind}; {config_path} is for {version_name(width)}")
    if kind.role == "control" and "unet" in kind.parts:
        raise WeightsError(
            f"{path}: this control was trained together with the decoder of its UNet, so it needs a model of "
            "its own: load_model(config, weights, control=...)"
        )

    open_state, files = _opener_of_control(path, kind, wanted, None if base is None else Path(base))
    load_opened_into(holder, open_state, files, device)
    _pool_if_recognised(network, kind, path)
    return network.to(device).eval()


def _opener_of_control(
    path: Path, kind: Kind, wanted: Mapping[str, Tensor], base: Path | None
) -> tuple[Callable[[], Opened], list[Path]]:
    """What opens a control, and the files that it reads: the base too, if the control is a difference."""
    if base is not None and not kind.is_difference:  # a look at what it seems to be; then it is not needed
        open_control(path, kind, wanted, _unet_of(base, wanted))
        base = None

    def open_state() -> Opened:
        unet = None if base is None else _unet_of(base, wanted)
        state, is_mapped = open_control(path, kind, wanted, unet)
        return {key: state[key] for key in control_keys(state)}, is_mapped

    return open_state, [path] if base is None else [path, base]


def build_for(config_path: str | Path, kind: Kind) -> ControlLDM:
    """The model of a definition with its parameters on meta, predicting what ``kind`` says that its UNet
    does.
    """
    definition = load_config(config_path).model
    params = definition.setdefault("params", {})
    given = params.get("parameterization", "eps")
    if kind.prediction and kind.prediction != given:
        logger.warning("the weights predict %s, not %s as %s has it", kind.prediction, given, config_path)
        params.parameterization = kind.prediction
    with parameters_on_meta(), one_line_errors(config_path):
        if kind.zero_terminal:
            params.given_betas = zero_terminal_betas(params)
        return instantiate_from_config(definition)


def schedule_names(model: nn.Module) -> list[str]:
    """The buffers that the definition alone says: the noise schedule, and what goes with it."""
    return [name for name, _buffer in model.named_buffers(recurse=False) if name != "scale_factor"]


def zero_terminal_betas(params: Mapping[str, Any]) -> list[float]:
    """A definition's schedule, moved so that its last step is noise alone (arXiv 2305.08891)."""
    names = ("linear_start", "linear_end", "cosine_s")
    given = {name: params[name] for name in names if name in params}
    betas = make_beta_schedule(params.get("beta_schedule", "linear"), params.get("timesteps", 1000), **given)
    roots = np.sqrt(np.cumprod(1 - betas))
    alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    alphas[-1] = 4.9e-8  # 0 would make the inverse infinite; below float32's precision against 1 all the same
    return (1 - alphas / np.append(1.0, alphas[:-1])).tolist()


def _cast_parameters(module: nn.Module, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)


def _pool_if_recognised(network: ControlNet, kind: Kind, path: Path) -> None:
    if kind.pools and not network.global_average_pooling:
        logger.warning("%s: taken for a shuffle control: its outputs are averaged over the picture", path)
        network.global_average_pooling = True


def _control_definition(config_path: str | Path) -> DictConfig:
    definition = load_config(config_path).model.get("params", {}).get("control_stage_config")
    if definition is None:
        raise ValueError(f"{config_path}: the model has no control_stage_config, so it is not a ControlNet")
    return definition


def _unet_of(base: Path, wanted: Mapping[str, Tensor]) -> dict[str, Entry]:
    """What a control's weights started from, under ``model.diffusion_model.*``."""
    expect(base, recognise(base), "model")
    return open_as(base, {counterpart(key): tensor for key, tensor in wanted.items()})[0]


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
        if not isinstance(model.get("params", model), DictConfig):
            raise ValueError("model.params: a mapping of names to values is wanted")
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
