"""Weights on disk: one way in, one way out.

In: ``.ckpt``/``.pth`` (zip and legacy), ``.safetensors`` and sharded ``*.safetensors.index.json``, told apart
by their content, never trusted (:mod:`ldm.unpickling`), and never in memory twice. Out: atomically
(:mod:`ldm.atomic`), so that a full disk or a kill leaves the old file whole. Every fault of a file is a
:class:`WeightsError` that names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from ldm.atomic import atomic_write
from ldm.weight_formats import WeightsError, first_few, open_weights, write_safetensors

__all__ = [
    "WeightsError",
    "atomic_write",
    "load_file_into",
    "load_into",
    "map_state_dict",
    "read_state_dict",
    "save_state_dict",
    "system_error",
]

PICKLE_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")
_GROUPS, _LEAST_GROUP_BYTES = 8, 16 * 2**20

Hint = str | Callable[[Mapping[str, Tensor]], str]


def read_state_dict(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read every tensor of a weights file into memory of its own.

    The file is copied in eight groups out of a memory map, so the peak is the size of the result and an
    eighth of the file, also when ``dtype`` halves it (a legacy pickle cannot be mapped and is first read
    whole). The file may be changed or deleted afterwards.

    Args:
        path: ``.ckpt``, ``.pth``, ``.safetensors`` or ``*.index.json``; a ``state_dict`` wrapper is taken
            off.
        device: where the tensors go.
        dtype: cast floating-point tensors to this; None keeps the file's types.

    Raises:
        WeightsError: the file is missing, damaged, not a weights file, or names code to run (nothing of it is
            run).
    """
    return dict(_copies(Path(path), torch.device(device), dtype))


def map_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Open a weights file: the same tensors, but read from disk only when they are touched, and evictable
    after.

    For a look at keys and shapes, and for tools that read each tensor once. The tensors belong to the file:
    if another program overwrites it in place (a copy over it; not a rename), they change, or the process dies
    of a bus error. Keep them only for a short time, or use :func:`read_state_dict`. Raises as that does.
    """
    return open_weights(Path(path))[0]


def load_file_into(
    module: nn.Module,
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    elsewhere: Mapping[str, str | Path] | None = None,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
    hint: Hint = "",
) -> None:
    """Check a weights file against a module, then read it in; a module on the meta device is the cheapest
    target.

    Reads only what the module takes, casts to the module's dtypes while copying, and assigns. Nothing changes
    in the module if the file does not fit. Other arguments and errors as in :func:`load_into`.

    Args:
        device: where the tensors go.
        elsewhere: keys that are read from another file instead.
    """
    others = {key: Path(file) for key, file in (elsewhere or {}).items()}
    files = list(dict.fromkeys([Path(path), *others.values()]))
    maps = {file: map_state_dict(file) for file in files}
    origin = {**dict.fromkeys(maps[files[0]], files[0]), **others}
    found = {key: maps[file][key] for key, file in origin.items()}
    wanted = module.state_dict()
    _check_fit(module, found, " + ".join(map(str, files)), True, ignore, optional, hint)
    del found, maps  # let go of the files before the copying
    tensors: dict[str, Tensor] = {}
    for file in files:
        dtypes = {key: tensor.dtype for key, tensor in wanted.items() if origin.get(key) == file}
        tensors.update(_copies(file, torch.device(device), dtypes))
    module.load_state_dict(tensors, strict=False, assign=True)


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    *,
    strict: bool = True,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
    hint: Hint = "",
) -> None:
    """Assign the tensors of a state dict to a module, without a copy where dtype and device are right
    already.

    Args:
        module: takes the tensors; they are cast to its dtypes, and moved to its device unless that is meta.
        state: the tensors.
        source: where they come from, for the error.
        strict: missing and unexpected keys are errors; a wrong shape always is.
        ignore: keys that may come and are not used, as shell patterns (``model_ema.*``).
        optional: keys that may be missing, as shell patterns; the module keeps what it has.
        hint: what to do, for the end of the error; or a function that tells it from the state dict.

    Raises:
        WeightsError: keys or shapes do not fit; the module is then unchanged.
    """
    _check_fit(module, state, str(source), strict, ignore, optional, hint)
    tensors = {}
    for key, target in module.state_dict().items():
        if key in state:
            device = state[key].device if target.is_meta else target.device
            tensors[key] = state[key].to(device, target.dtype)
    module.load_state_dict(tensors, strict=False, assign=True)


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
    tensors = _plain_tensors(state)
    size = sum(tensor.nbytes for tensor in tensors.values())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise WeightsError(f"{path}: needs {size:,} bytes and {free:,} are free there; nothing was written")
    bar = tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc=path.name, disable=not progress)
    try:
        with bar, atomic_write(path) as partial:
            write = write_safetensors if path.suffix == ".safetensors" else torch.save
            with partial.open("wb") as file:
                write(tensors, CallbackIOWrapper(bar.update, file, "write"))
    except Exception as error:  # torch and safetensors wrap a full disk in errors of their own
        raise WeightsError(
            f"{path}: could not be saved ({size:,} bytes; {shutil.disk_usage(path.parent).free:,} are free "
            "there): "
            f"{system_error(error)}. What was there before is unchanged"
        ) from error


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
    if not path.parent.is_dir():
        raise WeightsError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise WeightsError(f"{path}: no permission to write to the folder {path.parent}")


def _plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if value.is_meta:
            raise WeightsError(
                f"{key}: has a shape but no data (it is on the meta device); load weights first"
            )
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    if not tensors:
        raise WeightsError("there are no tensors to save")
    return tensors


def _check_fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    strict: bool,
    ignore: Collection[str],
    optional: Collection[str],
    hint: Hint,
) -> None:
    wanted = module.state_dict()
    faults = []
    if strict:
        missing = [key for key in wanted if key not in state and not _matches(key, optional)]
        extra = [key for key in state if key not in wanted and not _matches(key, ignore)]
        faults += [f"{len(missing)} keys are missing ({first_few(missing)})"] if missing else []
        faults += [f"{len(extra)} keys are unknown to the model ({first_few(extra)})"] if extra else []
    shapes = [
        f"{key}: {list(state[key].shape)} in the file, {list(tensor.shape)} in the model"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    faults += [f"{len(shapes)} shapes differ ({first_few(shapes)})"] if shapes else []
    if faults:
        text = f"{source}: these weights do not fit {type(module).__name__}: {'; '.join(faults)}."
        raise WeightsError(f"{text} {hint if isinstance(hint, str) else hint(state)}".strip())


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _copies(
    path: Path, device: torch.device, dtypes: torch.dtype | Mapping[str, torch.dtype] | None
) -> Iterator[tuple[str, Tensor]]:
    """Copy tensors out of a file one by one; a mapping of dtypes also says which keys are wanted.

    Touched pages of a memory map count as the process's memory until it is unmapped. So the file is mapped
    anew for every group of tensors, and the pages of the last group go.
    """
    state, is_mapped = open_weights(path)
    version = _version(path)
    keys = [key for key in state if not isinstance(dtypes, Mapping) or key in dtypes]
    group_bytes = max(_LEAST_GROUP_BYTES, sum(state[key].nbytes for key in keys) / _GROUPS)
    touched = 0
    for key in keys:
        if is_mapped and touched > group_bytes:
            state = tensor = None  # lets go of the old map before the next one
            state, touched = open_weights(path)[0], 0
            if _version(path) != version:
                raise WeightsError(f"{path}: the file was changed while it was being read; load it again")
        tensor = state.pop(key)
        touched += tensor.nbytes
        dtype = dtypes[key] if isinstance(dtypes, Mapping) else dtypes if tensor.is_floating_point() else None
        yield key, tensor.to(device=device, dtype=dtype or tensor.dtype, copy=is_mapped)


def _version(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
