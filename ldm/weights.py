"""Weights on disk: one way in, one way out.

In: ``.ckpt``/``.pth`` (zip and legacy), ``.safetensors`` and sharded ``*.safetensors.index.json``, told apart
by their content, never trusted (:mod:`ldm.unpickling`), and never in memory twice. Out: :mod:`ldm.saving`.
Every fault of a file is a :class:`WeightsError` that names it. Keys are taken as they stand; files of other
layouts are read through :mod:`ldm.layouts`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.atomic import atomic_write
from ldm.recipes import Entry, Opened, tensor_of
from ldm.saving import check_can_save, save_state_dict, system_error
from ldm.weight_formats import WeightsError, first_few, open_weights

__all__ = [
    "WeightsError",
    "atomic_write",
    "can_reshape",
    "check_can_save",
    "check_finite",
    "first_few",
    "is_finite",
    "load_file_into",
    "load_into",
    "load_opened_into",
    "map_state_dict",
    "matches",
    "misfits",
    "read_state_dict",
    "save_state_dict",
    "system_error",
]

logger = logging.getLogger(__name__)

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
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
    path = Path(path)
    return dict(_copies(lambda: open_weights(path), [path], torch.device(device), dtype))


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
    """
    path = Path(path)
    options = {"ignore": ignore, "optional": optional, "hint": hint}
    load_opened_into(module, lambda: open_weights(path), [path], device, **options)


def load_opened_into(
    module: nn.Module,
    open_state: Callable[[], Opened],
    files: Sequence[Path],
    device: str | torch.device = "cpu",
    *,
    keep: Collection[str] = (),
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
    hint: Hint = "",
) -> None:
    """As :func:`load_file_into`, for a state dict that is put together from files.

    Args:
        open_state: opens it; called again and again, so that what was read can be let go of.
        files: the files that it reads; they must not change meanwhile. Errors name them.
        keep: keys of the module that stay as they are, whatever the files hold.

    Raises:
        WeightsError: also for weights that are not finite.
    """
    source = " + ".join(map(str, files))
    wanted = {key: tensor for key, tensor in module.state_dict().items() if key not in keep}
    opened = open_state()
    state = {key: entry for key, entry in opened[0].items() if key not in keep}
    _refuse(misfits(wanted, state, ignore=ignore, optional=optional), module, source, hint, state)
    # A control's rounding goes unnoticed: that of the embedded model has a control_miou of 0.455 with it, and
    # of 0.462 without, by the edges of 16 scenes.
    if any(e.dtype in FLOAT8 and not key.startswith("control_model.") for key, e in state.items()):
        logger.warning("%s: weights of 8 bits (float8); their rounding shows in the pictures", source)
    tensors: dict[str, Tensor] = {}
    broken = []
    dtypes = {key: tensor.dtype for key, tensor in wanted.items()}
    copies = _copies(open_state, files, torch.device(device), dtypes, opened)
    del state, opened  # the copying alone holds them, and lets go of what it has read
    for key, tensor in copies:
        tensors[key] = tensor.reshape(wanted[key].shape)
        broken += [] if is_finite(tensor) else [key]
    check_finite(broken, source, set(dtypes.values()))
    module.load_state_dict(tensors, strict=False, assign=True)


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both keep NaN, and show infinity: one pass without a mask in memory, which a sum of half floats takes
    # twenty times as long for.
    lowest, highest = (tensor.float() if tensor.dtype in FLOAT8 else tensor).aminmax()
    return bool(lowest.isfinite() and highest.isfinite())


def check_finite(broken: list[str], source: str, dtypes: Collection[torch.dtype] = ()) -> None:
    """Raise a WeightsError that names the keys ``broken``, unless there are none."""
    if broken:
        half = torch.float16 in dtypes
        cause = "; float16 holds no more than 65504: load them as float32 or bfloat16" if half else ""
        raise WeightsError(
            f"{source}: {len(broken)} weights hold NaN or infinite numbers ({first_few(broken)}), which give "
            f"black pictures only{cause}"
        )


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
    faults = misfits(module.state_dict(), state, strict, ignore, optional)
    _refuse(faults, module, str(source), hint, state)
    tensors = {}
    for key, target in module.state_dict().items():
        if key in state:
            device = state[key].device if target.is_meta else target.device
            tensors[key] = state[key].to(device, target.dtype).reshape(target.shape)
    module.load_state_dict(tensors, strict=False, assign=True)


def _refuse(
    faults: list[str], module: nn.Module, source: str, hint: Hint, state: Mapping[str, Entry]
) -> None:
    if faults:
        text = f"{source}: these weights do not fit {type(module).__name__}: {'; '.join(faults)}."
        raise WeightsError(f"{text} {hint if isinstance(hint, str) else hint(state)}".strip())


def misfits(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Entry],
    strict: bool = True,
    ignore: Collection[str] = (),
    optional: Collection[str] = (),
) -> list[str]:
    """What keeps a state dict from being that of ``wanted``, in words; nothing if it fits.

    A 1x1 convolution may come as a matrix, and the other way round.
    """
    faults = []
    if strict:
        missing = [key for key in wanted if key not in state and not matches(key, optional)]
        extra = [key for key in state if key not in wanted and not matches(key, ignore)]
        faults += [f"{len(missing)} keys are missing ({first_few(missing)})"] if missing else []
        faults += [f"{len(extra)} keys are unknown to the model ({first_few(extra)})"] if extra else []
    shared = [(key, tensor, state[key]) for key, tensor in wanted.items() if key in state]
    shapes = [
        f"{key}: {list(entry.shape)} in the file, {list(tensor.shape)} in the model"
        for key, tensor, entry in shared
        if not can_reshape(entry.shape, tensor.shape)
    ]
    faults += [f"{len(shapes)} shapes differ ({first_few(shapes)})"] if shapes else []
    whole = [
        f"{key}: {entry.dtype}"
        for key, tensor, entry in shared
        if tensor.is_floating_point() and not entry.dtype.is_floating_point
    ]
    faults += [f"{len(whole)} weights are whole numbers, so quantized ({first_few(whole)})"] if whole else []
    return faults


def can_reshape(found: torch.Size, wanted: torch.Size) -> bool:
    """Whether two shapes are the same, but for sides of 1 after a matrix: a 1x1 convolution is one."""
    if found == wanted:
        return True
    short, long = sorted((tuple(found), tuple(wanted)), key=len)
    return len(short) == 2 and long[:2] == short and set(long[2:]) == {1}


def matches(key: str, patterns: Collection[str]) -> bool:
    """Whether a key fits one of some shell patterns."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _copies(
    open_state: Callable[[], Opened],
    files: Sequence[Path],
    device: torch.device,
    dtypes: torch.dtype | Mapping[str, torch.dtype] | None,
    opened: Opened | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Copy tensors out of files one by one; a mapping of dtypes also says which keys are wanted, and
    ``opened`` are the files opened for the first time, if that was done already.

    Touched pages of a memory map count as the process's memory until it is unmapped. So the files are mapped
    anew for every group of tensors, and the pages of the last group go.
    """
    state, is_mapped = opened or open_state()
    opened = None
    version = _version(files)
    keys = [key for key in state if not isinstance(dtypes, Mapping) or key in dtypes]
    group_bytes = max(_LEAST_GROUP_BYTES, sum(state[key].nbytes for key in keys) / _GROUPS)
    touched = 0
    for key in keys:
        if is_mapped and touched > group_bytes:
            state = entry = tensor = None  # lets go of the old map before the next one
            state, touched = open_state()[0], 0
            if _version(files) != version:
                raise WeightsError(f"{files[0]}: the file was changed while it was being read; load it again")
        entry = state.pop(key)
        touched += entry.nbytes
        tensor = tensor_of(entry)
        dtype = dtypes[key] if isinstance(dtypes, Mapping) else dtypes if tensor.is_floating_point() else None
        copy = is_mapped and isinstance(entry, Tensor)
        yield key, tensor.to(device=device, dtype=dtype or tensor.dtype, copy=copy)


def _version(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Changes where one of the files does, or one in a folder among them."""
    inner = [path for file in files for path in (sorted(file.glob("**/*")) if file.is_dir() else [file])]
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in map(Path.stat, inner)]
