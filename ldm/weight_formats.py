"""The file formats of weights: what a file is, judged by its content, and its tensors as views of a memory
map.

Used through :mod:`ldm.weights`. Every fault of a file is a :class:`WeightsError` that names it and says what
to do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from ldm.nested import unwrapped
from ldm.torch_files import check_expansion, read_torch_file
from ldm.unpickling import Inert, Refused

logger = logging.getLogger(__name__)

MOST_TEXT_BYTES = 16 * 2**20
"""Neither the header of a safetensors file nor an index of shards is longer: enough for 100,000 tensors."""

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
    """The first names of a list as text of one line, with an ellipsis if there are more."""
    shown = [name[:200] if name.isprintable() else ascii(name[:200]) for name in names[:count]]
    return ", ".join(shown) + (", …" if len(names) > count else "")


def open_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a file and whether they are views of a memory map of it."""
    try:
        if path.is_dir():
            raise WeightsError(
                f"{path}: this is a folder; give the path of a .ckpt, .pth or .safetensors file"
            )
        if not path.exists():
            raise WeightsError(f"{path}: there is no such file")
        if not path.is_file():
            raise WeightsError(f"{path}: this is a device or a pipe, not a file")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be opened: {error.strerror}") from error
    if path.name.endswith(".index.json"):
        return _open_index(path, size), True
    _refuse_other_files(path, head, size)
    is_zip = head.startswith(b"PK\x03\x04")
    if _looks_like_safetensors(head, size) or (path.suffix == ".safetensors" and not is_zip):
        return _open_safetensors(path, int.from_bytes(head[:8], "little")), True
    return _open_pickle(path)


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _refuse_other_files(path: Path, head: bytes, size: int) -> None:
    if not head:
        raise WeightsError(f"{path}: the file is empty; download it again")
    for start, what in _NOT_WEIGHTS.items():
        if head.lstrip().startswith(start) and not _looks_like_safetensors(head, size):
            raise WeightsError(f"{path}: this is {what}")
    if path.suffix.lower() == ".onnx":
        raise WeightsError(f"{path}: this is an ONNX file, a graph; get the .safetensors or .ckpt form")
    if head[257:262] == b"ustar":
        raise WeightsError(f"{path}: this is a tar archive, which torch wrote before 2017; it is not read")


def _open_safetensors(path: Path, header_bytes: int) -> dict[str, Tensor]:
    try:
        if MOST_TEXT_BYTES < header_bytes < path.stat().st_size:
            raise Refused(f"its header has {header_bytes:,} bytes, and weights never need so many")
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except Refused as error:
        raise WeightsError(f"{path}: refused, because {error}") from error
    except Exception as error:  # SafetensorError, OSError, and what torch says of impossible shapes
        raise _damaged(path, error) from error


def _open_index(path: Path, size: int) -> dict[str, Tensor]:
    """The standard Hugging Face index: ``{"weight_map": {key: file name beside the index}}``."""
    if size > MOST_TEXT_BYTES:
        raise WeightsError(f"{path}: not an index of weights: it has {size:,} bytes")
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
    if not isinstance(name, str) or not name or not name.isprintable() or name.endswith(".index.json"):
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


def _open_pickle(path: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        content, mapped = read_torch_file(path)
        state = _tensors_in(content, path)
        check_expansion(sum(tensor.nbytes for tensor in state.values()), path)
        return state, mapped
    except WeightsError:
        raise
    except Refused as error:
        raise WeightsError(f"{path}: refused, because {error}") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise _damaged(path, error) from error


def _tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    content = unwrapped(content)
    if not isinstance(content, dict):
        kind = str(content) if isinstance(content, Inert) else type(content).__name__
        raise WeightsError(f"{path}: holds a {kind.removeprefix('a ')}, not a dictionary of tensors")
    state, skipped = {}, []
    for key, value in content.items():
        is_tensor = isinstance(value, Tensor)
        if (isinstance(value, Inert) and value.is_tensor) or (
            is_tensor and value.nbytes > value.untyped_storage().nbytes()
        ):
            shape = f" (shape {list(value.shape)})" if is_tensor else ""
            raise WeightsError(f"{path}: {key} is not a plain dense tensor{shape}")
        if is_tensor and isinstance(key, str):
            state[key] = value
        else:
            skipped.append(str(key))
    if not state:
        raise WeightsError(f"{path}: holds no tensors; its keys are {first_few(skipped)}")
    if skipped:
        logger.info(
            "%s: skipped %d entries that are not tensors (%s)", path, len(skipped), first_few(skipped)
        )
    return state


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(
        f"{path}: cannot be read as weights ({path.stat().st_size:,} bytes): {reason[0][:200]}. "
        "The file is damaged or was not downloaded whole; fetch it again"
    )
