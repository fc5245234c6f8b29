"""The conversions of :mod:`cldm.convert` from file to file: everything is checked first, then written
atomically.

Inputs are memory-mapped: their pages count as the process's memory, but the system may drop them at any time.
Memory that it cannot drop is taken by new and changed weights alone.
"""

from __future__ import annotations

from pathlib import Path

from cldm.convert import CONTROL, add_control, merge_control, transfer_control
from cldm.model import advice_for, create_model, load_config, parameters_on_meta
from ldm.definitions import one_line_errors
from ldm.util import instantiate_from_config
from ldm.weights import WeightsError, check_can_save, map_state_dict, save_state_dict


def add_control_to_file(
    source: Path, output: Path, config: Path, *, force: bool = False, progress: bool = False
) -> list[str]:
    """Write ``source`` (Stable Diffusion) with a fresh control to ``output``; a control that it has is not
    kept.

    Args:
        source: ``.ckpt``, ``.pth`` or ``.safetensors``, of the version that ``config`` defines.
        output: ``.ckpt``, ``.pth`` or ``.safetensors``; must not exist unless ``force``.
        config: YAML model definition.
        progress: show a bar.

    Returns:
        The names of the new keys.

    Raises:
        WeightsError, ValueError: a file is at fault; nothing was written.
    """
    _check_output(output, force)
    weights = map_state_dict(source)
    definition = load_config(config).model
    if "control_stage_config" not in definition.get("params", {}):
        raise ValueError(f"{config}: the model has no control_stage_config, so it is not a ControlNet")
    with parameters_on_meta():
        model = create_model(config)
    try:
        add_control(weights, model.state_dict())  # a trial on shapes alone
    except WeightsError as error:
        advice = advice_for(model.state_dict(), weights, needs_control=False)
        raise WeightsError(f"{source}: {error}. {advice}") from error
    with one_line_errors(config):
        model.control_model = instantiate_from_config(definition.params.control_stage_config)  # with values
    state, new = add_control(weights, model.state_dict())
    save_state_dict(state, output, progress=progress)
    return new


def transfer_control_to_file(
    base: Path, control: Path, target: Path, output: Path, *, force: bool = False, progress: bool = False
) -> list[str]:
    """Write ``target`` steered by a ``control`` that was trained on ``base``:
    :func:`cldm.convert.transfer_control`.

    Returns:
        The names of the keys that the target lacks and the control file gave. Other arguments and errors as
        in :func:`add_control_to_file`.
    """
    _check_output(output, force)
    states = [map_state_dict(path) for path in (base, control, target)]
    try:
        state, borrowed = transfer_control(*states)
    except WeightsError as error:
        raise WeightsError(f"{error} (base {base}, control {control}, target {target})") from error
    save_state_dict(state, output, progress=progress)
    return borrowed


def merge_control_to_file(
    base: Path, control: Path, output: Path, *, force: bool = False, progress: bool = False
) -> int:
    """Write ``base`` (Stable Diffusion) with the control of another file; see
    :func:`cldm.convert.merge_control`.

    Returns:
        The number of the control's tensors. Other arguments and errors as in :func:`add_control_to_file`.
    """
    _check_output(output, force)
    try:
        state = merge_control(map_state_dict(base), map_state_dict(control))
    except WeightsError as error:
        raise WeightsError(f"{error} (base {base}, control {control})") from error
    save_state_dict(state, output, progress=progress)
    return sum(key.startswith(CONTROL) for key in state)


def _check_output(output: Path, force: bool) -> None:
    check_can_save(output)
    if output.exists() and not force:
        raise WeightsError(f"{output}: exists already; give another name, or --force to replace it")
