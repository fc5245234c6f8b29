"""State dicts of ControlNet models made from those of others: pure functions from names to tensors.

A control copy starts as the UNet's encoder, so ``control_model.X`` corresponds to
``model.diffusion_model.X``. What has no such counterpart (zero convolutions, the hint block) is the control's
own.

Sources: tool_add_control.py and tool_transfer_control.py of the original.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from ldm.layouts import CONTROL, TEXT, UNET, VAE
from ldm.recipes import Entry, sum_of, tensor_of, tensors_of
from ldm.weights import WeightsError, first_few

StateDict = Mapping[str, Entry]

BORROWED = (VAE, TEXT)
"""VAE and text encoder: an offset of the UNet does not touch them."""

_SAMPLE, _SMALL = 12, 0.3


def get_node_name(name: str, parent_name: str) -> tuple[bool, str]:
    """Whether ``name`` starts with ``parent_name``, and the rest of it (empty if not)."""
    if not name.startswith(parent_name):
        return False, ""
    return True, name[len(parent_name) :]


def counterpart(key: str) -> str:
    """The key in Stable Diffusion that corresponds to a key of a ControlNet model."""
    is_control, rest = get_node_name(key, CONTROL)
    return UNET + rest if is_control else key


def add_control(weights: StateDict, scratch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Stable Diffusion's weights with a control copy of its encoder.

    Args:
        weights: Stable Diffusion's.
        scratch: those of a freshly built ControlNet model. They give names, order, shapes and types, and the
            values of
            new keys: parts of the control that have no counterpart, and schedules. The others are on meta.

    Returns:
        The model's whole state dict, in the order of ``scratch``; tensors without a change of type are those
        of ``weights``, not copies. And the names of the new keys.

    Raises:
        WeightsError: Stable Diffusion's part is incomplete, or shapes differ.
    """
    new = [key for key in scratch if counterpart(key) not in weights]
    if missing := [key for key in new if scratch[key].is_meta and not key.startswith(CONTROL)]:
        raise WeightsError(
            f"these weights lack {len(missing)} keys of Stable Diffusion ({first_few(missing)})"
        )
    shapes = [
        f"{counterpart(key)}: {list(weights[counterpart(key)].shape)}, not {list(tensor.shape)}"
        for key, tensor in scratch.items()
        if key not in new and weights[counterpart(key)].shape != tensor.shape
    ]
    if shapes:
        raise WeightsError(f"{len(shapes)} shapes do not fit the model definition ({first_few(shapes)})")
    state = {
        key: tensor if key in new else tensor_of(weights[counterpart(key)]).to(tensor.dtype)
        for key, tensor in scratch.items()
    }
    return state, new


def transfer_control(
    base: StateDict, control: StateDict, target: StateDict
) -> tuple[dict[str, Tensor], list[str]]:
    """Move a control from the model it was trained on to another of the same architecture.

    Every weight of UNet and control becomes ``control + (target - base)``, where base and target are read at
    `counterpart`. The control's own weights stay as they are; VAE and text encoder are the target's.

    Args:
        base: the model that ``control`` was trained on.
        control: a whole ControlNet model, or only what was trained.
        target: the model to be steered.

    Returns:
        The whole state dict in the order of ``control``, and the names of the keys of VAE and text encoder
        that the target lacks and that were taken from ``control``.

    Raises:
        WeightsError: a weight is missing in one of the three, or its shapes differ.
    """
    control_part(control)  # must be there
    _check_offsets(base, control, target)
    state, borrowed = {}, []
    for key, tensor in control.items():
        if key.startswith(BORROWED):
            if key not in target:
                borrowed.append(key)
            state[key] = tensor_of(target.get(key, tensor))
        else:
            pair = (base.get(counterpart(key)), target.get(counterpart(key)))
            state[key] = _offset(
                tensor_of(tensor), *(None if entry is None else tensor_of(entry) for entry in pair)
            )
    if not _is_whole(control):  # the rest is the target's
        state = {**tensors_of(_without_control(target)), **state}
    for prefix in BORROWED:
        if not any(key.startswith(prefix) for key in state):
            raise WeightsError(f"neither the target nor the control has {prefix}* keys; one of them must")
    return state, borrowed


def _check_offsets(base: StateDict, control: StateDict, target: StateDict) -> None:
    """Each weight that base or target has must be in both, in the control's shape."""
    for key, tensor in control.items():
        name = counterpart(key)
        if key.startswith(BORROWED) or (name not in base and name not in target):
            continue
        if not name.startswith(UNET):
            continue  # schedules, which many files lack
        for role, state in (("base", base), ("target", target)):
            if name not in state:
                raise WeightsError(f"the {role} lacks {name}; it must be a whole Stable Diffusion model")
            if state[name].shape != tensor.shape:
                raise WeightsError(
                    f"{name} has the shape {list(state[name].shape)} in the {role} and {list(tensor.shape)} "
                    "in the "
                    "control; all three must be of one version of Stable Diffusion"
                )


def _offset(tensor: Tensor, base: Tensor | None, target: Tensor | None) -> Tensor:
    if base is None or target is None or not tensor.is_floating_point():
        return tensor
    wide = torch.promote_types(tensor.dtype, torch.float32)
    if torch.equal(tensor.to(wide), base.to(wide)):
        return target.to(tensor.dtype)  # a weight that training left alone: without the rounding of a + b - a
    return (tensor.to(wide) + (target.to(wide) - base.to(wide))).to(tensor.dtype)


def control_part(control: StateDict) -> dict[str, Entry]:
    """What a control brings to another base: its ``control_model.*``.

    Of a file that is no whole model everything: training that does not lock Stable Diffusion also saves the
    decoder.

    Raises:
        WeightsError: there are no ``control_model.*`` keys.
    """
    if not any(key.startswith(CONTROL) for key in control):
        raise WeightsError(
            f"the control has no {CONTROL}* keys, so it is no ControlNet ({first_few(list(control))})"
        )
    prefix = CONTROL if _is_whole(control) else ""
    return {key: tensor for key, tensor in control.items() if key.startswith(prefix)}


def merge_control(base: StateDict, control: StateDict) -> dict[str, Entry]:
    """Stable Diffusion (or any ControlNet model) with the control of another file: see `control_part`.

    Raises:
        WeightsError: the base is no Stable Diffusion, or the control does not belong to its version.
    """
    if not any(key.startswith(UNET) for key in base):
        raise WeightsError(
            f"the base has no {UNET}* keys, so it is no whole Stable Diffusion ({first_few(list(base))})"
        )
    part = control_part(control)
    shapes = [
        f"{key}: {list(tensor.shape)}, and {list(base[counterpart(key)].shape)} in the base"
        for key, tensor in part.items()
        if counterpart(key) in base and base[counterpart(key)].shape != tensor.shape
    ]
    if shapes:
        raise WeightsError(
            f"base and control are of different versions of Stable Diffusion ({first_few(shapes)})"
        )
    return {**_without_control(base), **part}


def restore_difference(base: StateDict, control: StateDict, wanted: Collection[str]) -> dict[str, Entry]:
    """A control of which a file holds the difference from its base (webui's ``extract_controlnet_diff``).

    What has a counterpart in the base is the difference plus that; what the file leaves out did not differ.

    Args:
        base: the model that the control is to steer.
        control: the differences, under ``control_model.*``.
        wanted: the keys of the whole control.
    """
    result: dict[str, Entry] = dict(control)
    for key in wanted:
        original = base.get(counterpart(key)) if key.startswith(CONTROL) else None
        if original is not None:
            result[key] = sum_of(control[key], partial(tensor_of, original)) if key in control else original
    return result


def looks_like_difference(base: StateDict, control: StateDict) -> bool:
    """Whether the weights of a control are so small against its base's that they can only be differences.

    A trained control has weights of about the size of those it started from; reads a few of the smaller ones.
    """
    shared = [
        (control[key], base[counterpart(key)])
        for key in control
        if key.startswith(CONTROL) and counterpart(key) in base and control[key].ndim > 1
    ]
    smallest = sorted(shared, key=lambda pair: pair[0].nbytes)[:_SAMPLE]
    sizes = [[float(tensor_of(entry).float().square().sum()) for entry in pair] for pair in smallest]
    own, originals = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0.0, 0.0)
    return own < _SMALL**2 * originals < math.inf


def _is_whole(control: StateDict) -> bool:
    return any(key.startswith(BORROWED) for key in control)


def _without_control(state: StateDict) -> dict[str, Entry]:
    """Without the averages of training either, which know of no new control and take as much room as the
    UNet.
    """
    return {key: tensor for key, tensor in state.items() if not key.startswith((CONTROL, "model_ema."))}
