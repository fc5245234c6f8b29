"""The conversions of :mod:`cldm.convert` from file to file: everything is checked first, then written
atomically.

Every input may be a file or folder of any layout (:mod:`ldm.layouts`). Inputs are memory-mapped: their pages
count as the process's memory, but the system may drop them at any time. Memory that it cannot drop is taken
by new and changed weights alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cldm.assemble import HARMLESS_KEYS, Assembly, Sources, control_keys, open_as, open_control
from cldm.convert import add_control, transfer_control
from cldm.diffusers_folder import Save, write_control, write_pipeline
from cldm.model import build_for, load_config, schedule_names
from ldm.atomic import atomic_folder
from ldm.definitions import one_line_errors
from ldm.layouts import CONTROL, diffusers
from ldm.layouts.recognise import Kind, expect, recognise
from ldm.recipes import Entry, tensor_of, tensors_of
from ldm.saving import INDEX, check_can_save, check_folder_of, save_shards, save_state_dict
from ldm.util import instantiate_from_config
from ldm.weights import WeightsError, check_finite, is_finite, misfits

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = ("original", "diffusers")
PARTS = ("whole", "control")
DEFAULT_SHARD = 2 * 10**9
_FILES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin", ".index.json")


def add_control_to_file(
    source: Path, output: Path, config: Path, *, force: bool = False, progress: bool = False
) -> list[str]:
    """Write ``source`` (Stable Diffusion) with a fresh control to ``output``; a control that it has is not
    kept.

    Args:
        source: Stable Diffusion of the version that ``config`` defines.
        output: ``.ckpt``, ``.pth`` or ``.safetensors``; must not exist unless ``force``.
        config: YAML model definition.
        progress: show a bar.

    Returns:
        The names of the new keys.

    Raises:
        WeightsError, ValueError: a file is at fault; nothing was written.
    """
    _check_output(output, force)
    definition = load_config(config).model
    kind = recognise(source)
    model = _model_with_control(config, kind)
    wanted = model.state_dict()
    weights = Assembly(Sources(source), kind, wanted, config, needs_control=False).open()[0]
    base = {key: tensor for key, tensor in wanted.items() if not key.startswith(CONTROL)}
    _check_fit(
        model, base, {key: weights[key] for key in weights if not key.startswith(CONTROL)}, str(source)
    )
    with one_line_errors(config):
        model.control_model = instantiate_from_config(definition.params.control_stage_config)  # with values
    schedule = schedule_names(model)
    state, new = add_control(_without(weights, schedule), model.state_dict())
    save_state_dict(_checked(model, state, str(source)), output, progress=progress)
    return [key for key in new if key not in schedule]


def transfer_control_to_file(
    base: Path,
    control: Path,
    target: Path,
    output: Path,
    config: Path,
    *,
    force: bool = False,
    progress: bool = False,
) -> list[str]:
    """Write ``target`` steered by a ``control`` that was trained on ``base``:
    :func:`cldm.convert.transfer_control`.

    Returns:
        The names of the keys that the target lacks and the control file gave. Other arguments and errors as
        in :func:`add_control_to_file`.
    """
    _check_output(output, force)
    kinds = {path: recognise(path) for path in (base, control, target)}
    for path in (base, target):
        expect(path, kinds[path], "model")
    if "control" not in kinds[control].parts:
        expect(control, kinds[control], "control")
    model = _model_with_control(config, kinds[target])
    wanted = model.state_dict()
    schedule = schedule_names(model)
    originals, steered = (_without(open_as(path, wanted)[0], schedule) for path in (base, target))
    trained = _without(open_as(control, wanted)[0], schedule)
    part = open_control(control, kinds[control], wanted, originals)[0]
    try:
        state, borrowed = transfer_control(originals, {**trained, **part}, steered)
    except WeightsError as error:
        raise WeightsError(f"{error} (base {base}, control {control}, target {target})") from error
    save_state_dict(_checked(model, state, f"{target} + {control}"), output, progress=progress)
    return borrowed


def merge_control_to_file(
    base: Path, control: Path, output: Path, config: Path, *, force: bool = False, progress: bool = False
) -> int:
    """Write ``base`` (Stable Diffusion) with the control of another file; see
    :func:`cldm.convert.merge_control`.

    Returns:
        The number of the control's tensors. Other arguments and errors as in :func:`add_control_to_file`.
    """
    _check_output(output, force)
    kind = recognise(base)
    model = _model_with_control(config, kind)
    state = Assembly(Sources(base, control=control), kind, model.state_dict(), config).open()[0]
    save_state_dict(_checked(model, state, f"{base} + {control}"), output, progress=progress)
    return len(control_keys(state))


@dataclass(frozen=True)
class Form:
    """How weights are to be written.

    Args:
        layout: one of `LAYOUTS`.
        part: one of `PARTS`; by default all that is there.
        dtype: of the weights; None keeps the file's. Noise schedules stay float32.
        shard_bytes: the most of one file; None writes one file for each network.
    """

    layout: str = "original"
    part: str | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int | None = None


def convert_file(
    source: Path, output: Path, config: Path, form: Form, *, force: bool = False, progress: bool = False
) -> str:
    """Write a model, or a control alone, in another layout, type or format.

    Args:
        source: a file or folder of any layout. output: ``.safetensors``, ``.pth``, ``.ckpt`` or
        ``NAME.safetensors.index.json`` (shards); a folder for
            diffusers' layout, where a control may also be one file.
        config: YAML model definition.
        force: replace an output that exists.
        progress: show bars.

    Returns:
        What was written, in words.

    Raises:
        WeightsError, ValueError: a file is at fault; nothing was written.
    """
    is_folder = form.layout == "diffusers" and not output.name.endswith(_FILES)
    _check_output(output, force, is_folder=is_folder)
    kind = recognise(source)
    part = form.part or ("control" if kind.role == "control" else "whole")
    if form.layout == "diffusers" and part == "whole" and not is_folder:
        raise WeightsError(f"{output}: diffusers keeps a whole model in a folder; give the path of a folder")
    model = _model_with_control(config, kind)
    state = _read_part(source, kind, part, model, config)
    if form.dtype is not None:
        state = _cast(state, form.dtype, schedule_names(model))
        check_finite([key for key in state if not is_finite(state[key])], str(source), [form.dtype])
    save = partial(_save, shard_bytes=form.shard_bytes, progress=progress)
    if is_folder:
        _write_folder(output, state, kind, config, save)
    elif form.layout == "diffusers":
        bare = {key[len(CONTROL) :]: tensor for key, tensor in state.items()}
        save(tensors_of(diffusers.from_original("control", bare)), output)
    else:
        save(state, output)
    return f"{'a control' if part == 'control' else kind.what} ({len(state)} tensors)"


def _write_folder(output: Path, state: Mapping[str, Tensor], kind: Kind, config: Path, save: Save) -> None:
    definition = load_config(config).model
    if kind.prediction:
        definition.params.parameterization = kind.prediction
    pools = kind.pools or bool(definition.params.get("global_average_pooling"))
    with atomic_folder(output) as folder:
        if all(key.startswith(CONTROL) for key in state):
            write_control(folder, state, definition, pools, save)
        else:
            write_pipeline(folder, state, definition, pools, kind.zero_terminal, save)


def _save(tensors: Mapping[str, Tensor], path: Path, shard_bytes: int | None, progress: bool) -> None:
    is_index = path.name.endswith(INDEX)
    if is_index or (shard_bytes and sum(tensor.nbytes for tensor in tensors.values()) > shard_bytes):
        index = path if is_index else path.with_name(f"{path.name}.index.json")
        save_shards(tensors, index, shard_bytes or DEFAULT_SHARD, progress=progress)
    else:
        save_state_dict(tensors, path, progress=progress)


def _read_part(source: Path, kind: Kind, part: str, model: nn.Module, config: Path) -> dict[str, Tensor]:
    """The control, or the whole model that a file holds, checked against the definition."""
    wanted = model.state_dict()
    if part == "control":
        if "control" not in kind.parts:
            expect(source, kind, "control")
        if kind.role == "control" and "unet" in kind.parts:
            raise WeightsError(
                f"{source}: this control was trained together with the decoder of its UNet; put it together "
                "with its base first"
            )
        state = open_control(source, kind, wanted, None)[0]
        only = {key: wanted[key] for key in control_keys(wanted)}
        return _checked(model, {key: state[key] for key in control_keys(state)}, str(source), only)
    if kind.role == "control":
        raise WeightsError(
            f"{source}: this is {kind}; put it together with its base first, or give --part control"
        )
    state = Assembly(Sources(source), kind, wanted, config, needs_control=False).open()[0]
    if "control" not in kind.parts:
        wanted = {key: tensor for key, tensor in wanted.items() if not key.startswith(CONTROL)}
    return _checked(model, state, str(source), wanted)


def _model_with_control(config: Path, kind: Kind) -> nn.Module:
    """The definition's model on meta, to check against."""
    if "control_stage_config" not in load_config(config).model.get("params", {}):
        raise ValueError(f"{config}: the model has no control_stage_config, so it is not a ControlNet")
    return build_for(config, kind)


def _checked(
    model: nn.Module,
    state: Mapping[str, Entry],
    source: str,
    wanted: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a state dict that fits a model, in its order, with the noise schedules of the
    definition.

    Raises:
        WeightsError: it does not fit, or weights are not finite.
    """
    wanted = model.state_dict() if wanted is None else wanted
    schedule = schedule_names(model)
    _check_fit(model, wanted, state, source)
    given = {key: tensor if key in schedule else state.get(key, tensor) for key, tensor in wanted.items()}
    tensors = {key: tensor_of(entry) for key, entry in given.items()}
    check_finite([key for key, tensor in tensors.items() if not is_finite(tensor)], source)
    return tensors


def _check_fit(
    model: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Entry], source: str
) -> None:
    computed = [name for name, buffer in model.named_buffers() if not buffer.is_meta]
    ignored = [*HARMLESS_KEYS, *schedule_names(model)]
    if faults := misfits(wanted, state, ignore=ignored, optional=computed):
        raise WeightsError(f"{source}: these weights do not make a whole model: {'; '.join(faults)}")


def _without(state: Mapping[str, Entry], names: Collection[str]) -> dict[str, Entry]:
    return {key: entry for key, entry in state.items() if key not in names}


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype, keep: Collection[str]) -> dict[str, Tensor]:
    return {
        key: tensor if key in keep or not tensor.is_floating_point() else tensor.to(dtype)
        for key, tensor in state.items()
    }


def _check_output(output: Path, force: bool, *, is_folder: bool = False) -> None:
    if is_folder:
        check_folder_of(output)
    else:
        check_can_save(output.with_name(output.name.removesuffix(".index.json")))
    if output.exists() and not force:
        raise WeightsError(f"{output}: exists already; give another name, or --force to replace it")
    if output.is_dir() and not any((output / name).is_file() for name in ("model_index.json", "config.json")):
        raise WeightsError(f"{output}: this folder holds something else than a model; it is not replaced")
