"""The file formats of weights: what a file is, judged by its content, and its tensors as views of a memory
map.

Used through :mod:`ldm.weights`. Every fault of a file is a :class:`WeightsError` that names it and says what
to do.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from ldm.unpickling import refused_names, unpickle

logger = logging.getLogger(__name__)

_NOT_WEIGHTS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file: run `git lfs pull`, or download it",
    b"<": "a web page or XML, not weights: fetch it again with the file's direct link",
    b"{": "JSON text, not weights; only an index ending in .index.json can be read",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"GGUF": "a GGUF file, which this project does not read; get the .safetensors or .ckpt form",
}


_SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class WeightsError(ValueError):
    """A weights file that cannot be read, written, or fitted to a model; the text names the file and what to
    do.
    """


def first_few(names: list[str], count: int = 3) -> str:
    """The first names of a list as text, with an ellipsis if there are more."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def open_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file and whether they are views of a memory map of it."""
    if path.is_dir():
        raise WeightsError(f"{path}: this is a folder; give the path of a .ckpt, .pth or .safetensors file")
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    if path.name.endswith(".index.json"):
        return _open_index(path), True
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened: {error.strerror}") from error
    size = path.stat().st_size
    _refuse_other_files(path, head, size)
    is_zip = head.startswith(b"PK\x03\x04")
    if _looks_like_safetensors(head, size) or (path.suffix == ".safetensors" and not is_zip):
        return _open_safetensors(path), True
    return _open_pickle(path, is_zip)


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _refuse_other_files(path: Path, head: bytes, size: int) -> None:
    if not head:
        raise WeightsError(f"{path}: the file is empty; download it again")
    for start, what in _NOT_WEIGHTS.items():
        if head.lstrip().startswith(start) and not _looks_like_safetensors(head, size):
            raise WeightsError(f"{path}: this is {what}")


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except Exception as error:  # SafetensorError, OSError, and what torch says of impossible shapes
        raise _damaged(path, error) from error


def _open_index(path: Path) -> dict[str, Tensor]:
    """The standard Hugging Face index: ``{"weight_map": {key: file name beside the index}}``."""
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for key, name in weight_map.items():
            shards.setdefault(name, []).append(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f'{path}: not an index of weights: no "weight_map" of keys to file names in it'
        ) from error
    state: dict[str, Tensor] = {}
    for name, keys in shards.items():
        if not _stays_inside(name):
            raise WeightsError(f"{path}: the index points to {name!r}; shards must lie beside it or below")
        shard = open_weights(path.parent / name)[0]
        if missing := [key for key in keys if key not in shard]:
            raise WeightsError(
                f"{path.parent / name}: {len(missing)} keys of the index are missing ({first_few(missing)})"
            )
        state.update((key, shard[key]) for key in keys)
    return state


def _stays_inside(name: object) -> bool:
    """Judged by the name, not by links: Hugging Face's cache keeps shards as links to another folder."""
    if not isinstance(name, str) or not name or name.endswith(".index.json"):
        return False
    windows = PureWindowsPath(name)
    return not (PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts)


def write_safetensors(tensors: Mapping[str, Tensor], file: IO[bytes]) -> None:
    """Write contiguous CPU tensors to an open file in the safetensors format.

    Not the library's ``save_file``: that writes to a hidden file of its own, which a kill leaves behind and
    which nobody else may read (mode 0600).
    """
    # The widest type first, so that each tensor lies at a multiple of its type's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in ordered:
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise WeightsError(f"{key}: {tensor.dtype} cannot be saved as safetensors; use .ckpt")
        offsets = [end, end := end + tensor.nbytes]
        header[key] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _key, tensor in ordered:
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _open_pickle(path: Path, is_zip: bool) -> tuple[dict[str, Tensor], bool]:
    try:
        # Mapping reads the stored bytes as they lie; records that someone compressed must be unpacked
        # instead.
        mmap = is_zip and path.suffix != ".safetensors" and not _is_compressed(path)
        content = unpickle(path, mmap=mmap)
    except Exception as error:  # a damaged pickle may raise nearly anything
        if names := refused_names(path):
            raise WeightsError(
                f"{path}: refused, because it asks for {first_few(names)}, which weights never need. "
                "Nothing in it was "
                "run. If you trust its author, ask for a .safetensors file"
            ) from error
        raise _damaged(path, error) from error
    return _tensors_in(content, path), mmap


def _is_compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())


def _tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    state = {
        key: value.detach()
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not state:
        raise WeightsError(
            f"{path}: holds no tensors; its keys are {first_few([str(key) for key in content])}"
        )
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise WeightsError(f"{path}: {key} is not a plain dense tensor (shape {list(tensor.shape)})")
    if skipped := [str(key) for key in content if key not in state]:
        logger.info(
            "%s: skipped %d entries that are not tensors (%s)", path, len(skipped), first_few(skipped)
        )
    return state


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines() or [type(error).__name__]
    return WeightsError(
        f"{path}: cannot be read as weights ({path.stat().st_size:,} bytes): {reason[0][:200]}. "
        "The file is damaged or was not downloaded whole; fetch it again"
    )
