"""Weights out: atomically (:mod:`ldm.atomic`), so that a full disk or a kill leaves the old file whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from ldm.atomic import atomic_write
from ldm.weight_formats import WeightsError, write_safetensors

INDEX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")


def save_state_dict(state: Mapping[str, Tensor], path: str | Path, *, progress: bool = False) -> None:
    """Save a state dict, without a wrapper around it: ``.safetensors``, or a zip pickle for ``.ckpt`` and
    ``.pth``.

    Atomic: a full disk or a kill leaves an old file at ``path`` whole (see :func:`ldm.atomic.atomic_write`).
    Tensors on an accelerator, views of a bigger tensor, non-contiguous ones and those that share memory are
    saved as plain copies.

    Args:
        progress: show a bar of the bytes written.

    Raises:
        WeightsError: unknown suffix, no such folder, nothing to save, or the disk is full.
    """
    path = Path(path)
    check_can_save(path)
    is_safetensors = path.suffix == ".safetensors"
    tensors = _plain_tensors(state, with_own_storage=not is_safetensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _check_room(path, size)
    bar = tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name, disable=not progress)
    try:
        with bar, atomic_write(path) as partial:
            write = write_safetensors if is_safetensors else torch.save
            with partial.open("wb") as file:
                write(tensors, CallbackIOWrapper(bar.update, file, "write"))
    except Exception as error:  # torch and safetensors wrap a full disk in errors of their own
        raise WeightsError(
            f"{path}: could not be saved ({size:,} bytes; {shutil.disk_usage(path.parent).free:,} are free "
            "there): "
            f"{system_error(error)}. What was there before is unchanged"
        ) from error


def save_shards(
    state: Mapping[str, Tensor], index: Path, most_bytes: int, *, progress: bool = False
) -> list[Path]:
    """Save a state dict as ``NAME-00001-of-0000N.safetensors`` and so on, with
    ``NAME.safetensors.index.json``.

    The index is written last, and an old one is taken away first: a kill on the way leaves no index, never
    one that points to shards of two models.

    Args:
        index: the path of the index.
        most_bytes: of one shard, but a shard holds at least one tensor.

    Returns:
        The files, the index last.

    Raises:
        WeightsError: as :func:`save_state_dict`.
    """
    name = index.name.removesuffix(INDEX)
    groups: list[dict[str, Tensor]] = []
    room = 0
    for key, tensor in state.items():
        if not groups or tensor.nbytes > room:
            groups.append({})
            room = most_bytes
        groups[-1][key] = tensor
        room -= tensor.nbytes
    shards = [
        index.with_name(f"{name}-{i + 1:05}-of-{len(groups):05}.safetensors") for i in range(len(groups))
    ]
    for shard in shards:
        check_can_save(shard)
    total = sum(tensor.nbytes for tensor in state.values())
    _check_room(index, total)
    index.unlink(missing_ok=True)
    for shard, group in zip(shards, groups, strict=True):
        save_state_dict(group, shard, progress=progress)
    places = {key: shard.name for shard, group in zip(shards, groups, strict=True) for key in group}
    with atomic_write(index) as partial:
        partial.write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2), "utf-8"
        )
    return [*shards, index]


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise WeightsError(f"{path}: needs {size:,} bytes and {free:,} are free there; nothing was written")


def system_error(error: BaseException) -> str:
    """The system's own words, which torch's writer hides behind "unexpected pos"."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OSError):
        reason = reason.__cause__ or reason.__context__
    return (str(reason or error) or type(error).__name__).splitlines()[0]


def check_can_save(path: Path) -> None:
    """Find out before the long work whether :func:`save_state_dict` can save to a path; raises WeightsError
    if not.
    """
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise WeightsError(f"{path}: unknown suffix {path.suffix!r}; use .safetensors, .ckpt or .pth")
    if path.is_dir():
        raise WeightsError(f"{path}: this is a folder; give the path of a file")
    check_folder_of(path)


def check_folder_of(path: Path) -> None:
    """Raise a WeightsError unless a new file or folder can be made at a path."""
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise WeightsError(f"{path}: no permission to write to the folder {path.parent}")


def _plain_tensors(state: Mapping[str, Tensor], *, with_own_storage: bool) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU; ``with_own_storage`` for torch, which saves whole storages, once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if value.is_meta:
            raise WeightsError(
                f"{key}: has a shape but no data (it is on the meta device); load weights first"
            )
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if with_own_storage and (storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen):
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    if not tensors:
        raise WeightsError("there are no tensors to save")
    return tensors
